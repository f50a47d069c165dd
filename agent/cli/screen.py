"""Where a command draws: rich on a terminal, the same words without colour elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from io import StringIO
from typing import TYPE_CHECKING, Any

import click
import msgspec

from agent.cli.text import escaped_json, safe

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

    from agent.cli.options import Output
    from agent.cli.tables import Column, Look, Pairs, Table

_ENDLESS = 1_000_000  # cells: no line of ours is longer

_STYLES = {
    "running": "green",
    "completed": "green",
    "healthy": "green",
    "ready": "green",
    "ok": "green",
    "free": "green",
    "in_use": "cyan",
    "preparing": "cyan",
    "updating": "cyan",
    "deploying": "cyan",
    "started": "cyan",
    "pending": "cyan",
    "booting": "cyan",
    "launching": "cyan",
    "draining": "yellow",
    "degraded": "yellow",
    "dirty": "yellow",
    "quarantined": "yellow",
    "absent": "bold red",
    "waiting_for_secrets": "yellow",
    "warning": "yellow",
    "warn": "yellow",
    "cancelled": "yellow",
    "deleting": "yellow",
    "stopping": "yellow",
    "failed": "bold red",
    "error": "bold red",
    "unhealthy": "bold red",
    "lost": "bold red",
    "refuse": "bold red",
    "stopped": "dim",
}


def on_terminal() -> bool:
    """Whether somebody watches."""
    return sys.stdout.isatty()


def terminal(output: Output | None = None) -> Console:
    """The terminal's console. What is printed is data: `0000:ab:00.0` holds no emoji."""
    from agent.cli.tables import Look, Screen

    console = Screen(highlight=False, soft_wrap=False, emoji=False)
    console.look = _look(output, Look(width=console.width))
    return console


def show(drawing: RenderableType, output: Output | None = None) -> None:
    """Draw on a terminal in its width; elsewhere as wide as it is, and without trailing blanks."""
    if on_terminal():
        terminal(output).print(drawing, crop=False, overflow="ignore")
    else:
        click.echo(plain(drawing, output), nl=False)


def plain(drawing: RenderableType, output: Output | None = None) -> str:
    """The drawing as lines of text, none of them broken."""
    from agent.cli.tables import Look, Screen

    out = StringIO()
    console = Screen(file=out, width=_ENDLESS, color_system=None, highlight=False, emoji=False)
    console.look = _look(output, Look())
    console.print(drawing, crop=False, overflow="ignore")
    return "".join(f"{line.rstrip()}\n" for line in out.getvalue().splitlines())


def _look(output: Output | None, look: Look) -> Look:
    from dataclasses import replace

    return look if output is None else replace(look, wide=output.wide, headers=output.headers)


def word(text: str) -> Text:
    """A status, in its colour."""
    from rich.text import Text

    return Text(text, style=_STYLES.get(text, ""))


def table(*columns: Column | str) -> Table:
    """A table with headers and no lines; of columns by name alone the later are needed less."""
    from agent.cli.tables import Table

    return Table(*columns)


def pairs() -> Pairs:
    """Two columns: what, and its value."""
    from agent.cli.tables import Pairs

    return Pairs()


def say(text: str, *, err: bool = False) -> None:
    """One line of our own words around names that others chose."""
    click.echo(safe(text), err=err)


def tell(answer: Any, output: Output, *lines: str) -> None:
    """What became of a change: the agent's answer for programs, these lines for people."""
    if output.for_programs:
        show_json(answer, one_line=output.by_line)
        return
    for line in lines:
        say(line)


def show_json(data: bytes | Any, *, one_line: bool = False) -> None:
    """As JSON, indented or on one line. What could steer a terminal is escaped, as JSON may."""
    raw = data if isinstance(data, bytes) else msgspec.json.encode(data)
    click.echo(escaped_json(msgspec.json.format(raw, indent=-1 if one_line else 2).decode()))


def show_json_lines(rows: Iterable[Any]) -> None:
    """A value a line."""
    for row in rows:
        show_json(row, one_line=True)
