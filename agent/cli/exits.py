"""How a command ends: the exit codes, and failures that carry theirs."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import IO, Any

import click

from agent.cli.text import safe


class Exit(IntEnum):
    """What the shell is told."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    REFUSED = 3
    UNKNOWN_NAME = 4
    UNREACHABLE = 5
    TIMED_OUT = 6


class Failure(click.ClickException):
    """Ends the command: a sentence and further lines on stderr, and an exit code."""

    def __init__(
        self, code: Exit, message: str, lines: Sequence[str] = (), *, word: str = "error"
    ) -> None:
        super().__init__(message)
        self.exit_code = int(code)  # type: ignore[misc]  # each failure has its own
        self.lines = tuple(lines)
        self.word = word
        self.oldest: int | None = None

    def show(self, file: IO[Any] | None = None) -> None:
        """Print to stderr. What came from a guest or a release cannot steer the terminal."""
        word = click.style(f"{self.word}:", fg="red", bold=True)
        click.echo(f"{word} {safe(self.message)}", file=file, err=True)
        for line in self.lines:
            click.echo(f"  {safe(line)}", file=file, err=True)
