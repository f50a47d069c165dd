"""How a command ends: the exit codes, and failures that carry theirs."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import IO, TYPE_CHECKING, Any

import click

from agent.cli.text import escaped_json, safe

if TYPE_CHECKING:
    from agent.wire.answers import ProblemDetails


class Exit(IntEnum):
    """What the shell is told."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    REFUSED = 3
    UNKNOWN_NAME = 4
    UNREACHABLE = 5
    TIMED_OUT = 6
    INTERRUPTED = 130


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
        self.problem: ProblemDetails | None = None  # the agent's own answer, if it gave one

    def show(self, file: IO[Any] | None = None) -> None:
        """Print to stderr. What came from a guest or a release cannot steer the terminal."""
        word = click.style(f"{self.word}:", fg="red", bold=True)
        click.echo(f"{word} {safe(self.message)}", file=file, err=True)
        for line in self.lines:
            click.echo(f"  {safe(line)}", file=file, err=True)


def json_of(error: click.ClickException) -> str:
    """A failure for programs: one line of JSON, `{"error": {code, message, lines, exit_code, …}}`.

    `code` is the agent's own where it answered with one; `reasons`, `field` and `retry_after_s`
    then are as it gave them.
    """
    import msgspec

    code = Exit(error.exit_code).name.lower()
    told: dict[str, Any] = {"code": code, "message": error.format_message()}
    told |= {"lines": getattr(error, "lines", ()), "exit_code": int(error.exit_code)}
    problem = getattr(error, "problem", None)
    if problem is not None:
        known = msgspec.to_builtins(problem)
        names = ("code", "reasons", "field", "retry_after_s", "oldest")
        told |= {name: known[name] for name in names if name in known}
    return escaped_json(msgspec.json.encode({"error": told}).decode())
