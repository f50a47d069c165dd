"""How the story is told: a heading a step, progress as it happens, a table at the end."""

from __future__ import annotations

import time
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from scripts.story.load import Tally


@dataclass
class Row:
    """One line of the final table. Times in seconds; None: there is none."""

    step: str
    happened: str
    tally: Tally | None = None
    switch_s: float | None = None
    downtime_s: float | None = None
    verdict: str | None = None
    may_refuse: bool = False

    @property
    def bad(self) -> bool:
        return self.tally is not None and self.tally.lost > 0 and not self.may_refuse


class Teller:
    """Prints to a terminal in colour, elsewhere plainly."""

    def __init__(self) -> None:
        self.console = Console(highlight=False, emoji=False)  # 0000:ab:00.0 is none
        if not self.console.is_terminal:
            self.console = Console(highlight=False, emoji=False, width=120)
        self._started = time.monotonic()

    def heading(self, number: int, title: str, command: str | None = None) -> None:
        self.console.print(f"\n[bold]{number}. {title}[/bold]")
        if command:
            self.console.print(f"   [dim]$ {command}[/dim]")

    def line(self, text: str) -> None:
        self.console.print(f"   [dim]{time.monotonic() - self._started:6.1f} s[/dim]  {text}")

    def table(self, rows: list[Row]) -> None:
        table = Table(title="What happened", title_justify="left")
        for name, justify in (
            ("step", "left"),
            ("what happened", "left"),
            ("sent", "right"),
            ("failed", "right"),
            ("reset", "right"),
            ("switch", "right"),
            ("downtime", "right"),
            ("verdict", "left"),
        ):
            table.add_column(name, justify=justify)  # type: ignore[arg-type]
        for row in rows:
            tally = row.tally
            style = "red" if row.bad else None
            table.add_row(
                row.step,
                row.happened,
                str(tally.sent) if tally else "-",
                str(tally.failed) if tally else "-",
                str(tally.reset) if tally else "-",
                f"{row.switch_s * 1000:.0f} ms" if row.switch_s is not None else "-",
                f"{row.downtime_s:.1f} s" if row.downtime_s is not None else "-",
                row.verdict or "-",
                style=style,
            )
        self.console.print()
        self.console.print(table)
        for row in rows:
            if row.tally and row.tally.failures:
                told = ", ".join(f"{n} × {why}" for why, n in row.tally.failures.most_common(4))
                self.console.print(f"   {row.step}: {told}")
