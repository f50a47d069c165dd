"""The end of a console as the person who asks why wants it. Pure; the guest is not trusted.

Without what moves a cursor, without what firmware and boot loaders say of themselves, and from the
stage that failed: what was printed after the stage before it was over. Where a console does not
tell the stages apart, all that is left of it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

LIMIT = 8192  # characters
WINDOW = 64 * 1024  # bytes of the console that are looked at

# ECMA-48: control sequences, the strings that an ST or a BEL ends, and two-character escapes.
_STEERING = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[ -/]*[0-~]"
)
# SeaBIOS, iPXE, EDK2 (OVMF, TDVF), and the kernel's decompressor and EFI stub.
_FIRMWARE = re.compile(
    r"\s*(SeaBIOS \(|iPXE \(|iPXE \d|Booting from |BdsDxe: |UEFI |EFI stub: |Press (F|ESC|Ctrl-B)"
    r"|Decompressing Linux|early console in |Probing EDD|No bootable device|Machine UUID )"
)
_HEAD = 400  # lines in which firmware speaks, before the kernel does
_KERNEL = re.compile(r"\[ *\d+\.\d{6}\]")


def last_words(text: str, stage: str | None = None, before: str | None = None) -> str:
    """At most LIMIT characters of whole lines, the newest.

    `stage`: the boot stage that failed or was under way; `before`: the one that was done before.
    """
    lines = _STEERING.sub("", text.replace("\r\n", "\n").replace("\r", "\n")).split("\n")
    lines = _from_stage(_without_firmware(lines), stage, before)
    return _newest("\n".join(lines))


def _without_firmware(lines: Sequence[str]) -> list[str]:
    last = -1
    for n, line in enumerate(lines[:_HEAD]):
        if _KERNEL.match(line):
            break
        if _FIRMWARE.match(line):
            last = n
    rest = list(lines[last + 1 :])
    while rest and not rest[0].strip():
        del rest[0]
    return rest


def _from_stage(lines: list[str], stage: str | None, before: str | None) -> list[str]:
    """What follows the last mention of the stage before, up to the first of the stage itself."""
    begins = _first(lines, stage)
    ends = [n for n in _mentions(lines, before) if begins is None or n < begins]
    start = ends[-1] + 1 if ends else (begins or 0)
    rest = lines[start:]
    return rest if any(line.strip() for line in rest) else lines


def _first(lines: Sequence[str], stage: str | None) -> int | None:
    return next(iter(_mentions(lines, stage)), None)


def _mentions(lines: Sequence[str], stage: str | None) -> list[int]:
    """Where the name stands as a word of its own, on a line that speaks of stages."""
    if not stage:
        return []
    name = re.compile(rf"\bstage\b.*(?<![\w-]){re.escape(stage)}(?![\w-])", re.IGNORECASE)
    return [n for n, line in enumerate(lines) if name.search(line)]


def _newest(text: str) -> str:
    if len(text) <= LIMIT:
        return text
    cut = text[-LIMIT:]
    first, feed, rest = cut.partition("\n")
    return rest if feed else first
