"""The kernel command line of a manifest: plain words, two of them held against others. Pure."""

from __future__ import annotations

import re

from agent.releases.fields import Field

# Longer command lines are cut by the kernel (COMMAND_LINE_SIZE, arch/x86).
MAX_CMDLINE = 2047
# Plain words only: in a quoted part of a command line a reader and the kernel could differ.
_CMDLINE = re.compile(r"[!#-~]+( [!#-~]+)*")
_CMDLINE_RULE = "must be printable words without quotes, one space between them"


def cmdline_words(cmdline: Field) -> list[str]:
    """Its words. Raises ReleaseFieldError."""
    if len(cmdline.text()) > MAX_CMDLINE:
        raise cmdline.error(f"must be at most {MAX_CMDLINE} characters")
    return cmdline.text(_CMDLINE, _CMDLINE_RULE).split(" ")


def check_word(
    cmdline: Field, words: list[str], name: str, value: str, *, meaning: str, needed: bool
) -> None:
    """Raise ReleaseFieldError unless the word `name=` is there once and is `value`."""
    found = [word.partition("=")[2] for word in words if word.partition("=")[0] == name]
    if len(found) != 1 and (found or needed):
        raise cmdline.error(f"must have one {name}=, has {len(found)}")
    if found and found[0] != value:
        raise cmdline.error(f"{name}= does not agree with {meaning}")
