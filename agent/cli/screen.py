"""Where a command draws: rich on a terminal, the same words without colour elsewhere."""

from __future__ import annotations

import sys
from io import StringIO
from typing import TYPE_CHECKING, Any

import click
import msgspec

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

_WIDE = 400

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


def terminal() -> Console:
    """The terminal's console. What is printed is data: `0000:ab:00.0` holds no emoji."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=False, emoji=False)


def show(drawing: RenderableType) -> None:
    """Draw on a terminal in its width; elsewhere as wide as it is, and without trailing blanks."""
    if on_terminal():
        terminal().print(drawing)
    else:
        click.echo(plain(drawing), nl=False)


def plain(drawing: RenderableType) -> str:
    """The drawing as lines of text."""
    from rich.console import Console

    out = StringIO()
    console = Console(file=out, width=_WIDE, color_system=None, highlight=False, emoji=False)
    console.print(drawing, crop=False, overflow="ignore")
    return "".join(f"{line.rstrip()}\n" for line in out.getvalue().splitlines())


def word(text: str) -> Text:
    """A status, in its colour."""
    from rich.text import Text

    return Text(text, style=_STYLES.get(text, ""))


def table(*columns: str) -> Table:
    """A table with headers and no lines."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        made.add_column(column, overflow="fold")
    return made


def pairs() -> Table:
    """Two columns: what, and its value."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    made.add_column(style="dim", no_wrap=True)
    made.add_column(overflow="fold")
    return made


def show_json(data: bytes | Any) -> None:
    """As JSON, indented."""
    raw = data if isinstance(data, bytes) else msgspec.json.encode(data)
    click.echo(msgspec.json.format(raw, indent=2).decode())
