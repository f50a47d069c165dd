"""Prints progress, tables and the verdict; keeps the tables as Markdown too."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from bench.figures import Bound, Figure, Table

HEADS = ("figure", "measured", "baseline", "ratio", "bound", "")


class Show:
    """One run's output."""

    def __init__(self, results: Path) -> None:
        self.console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
        self.tables: list[Table] = []
        self._results = results
        self._started = time.monotonic()

    def line(self, text: str) -> None:
        """A line of progress."""
        elapsed = f"{time.monotonic() - self._started:6.1f} s"
        self.console.print(f"[dim]{elapsed}[/dim]  {escape(text)}", soft_wrap=True)

    def table(self, table: Table) -> None:
        """Show it now, keep it for the verdict."""
        self.tables.append(table)
        rich = RichTable(title=table.title, title_justify="left")
        for head in HEADS:
            rich.add_column(head, justify="left" if head in ("figure", "") else "right")
        for figure in table.figures:
            rich.add_row(*cells(figure), style="red" if figure.met is False else None)
        self.console.print()
        self.console.print(rich)
        for note in table.notes:
            self.console.print(f"  {note}", style="dim", soft_wrap=True)
        self._results.write_text("\n".join(markdown(one) for one in self.tables))

    def verdict(self) -> bool:
        """Whether every bound was met; those that were not are listed."""
        missed = [(table, figure) for table in self.tables for figure in table.missed]
        bounds = sum(figure.met is not None for table in self.tables for figure in table.figures)
        self.console.print()
        for table, figure in missed:
            said = cells(figure)
            self.console.print(
                f"[red]NOT MET[/red]  {table.title}: {figure.what}: "
                f"{said[1]}, ratio {said[3]}, bound {said[4]}",
                soft_wrap=True,
            )
        self.console.print(f"{bounds - len(missed)} of {bounds} bounds met")
        return not missed


def cells(figure: Figure) -> tuple[str, ...]:
    """A figure as the table's row."""
    base = "" if figure.baseline is None else number(figure.baseline, figure.unit)
    if figure.baseline_is:
        base = f"{base} ({figure.baseline_is})" if base else figure.baseline_is
    ratio = "" if figure.ratio is None else f"{figure.ratio:.2f}"
    met = {None: "", True: "met", False: "NOT MET"}[figure.met]
    what = f"{figure.what} ({figure.note})" if figure.note else figure.what
    return (what, number(figure.measured, figure.unit), base, ratio, limit(figure), met)


def limit(figure: Figure) -> str:
    """The bound in words."""
    bound: Bound | None = figure.bound
    if bound is None:
        return ""
    sign = "≥" if bound.at_least else "≤"
    if bound.of == "ratio":
        return f"ratio {sign} {bound.limit:.2f}"
    if bound.of == "excess":
        return f"baseline + {number(bound.limit, figure.unit)}"
    return f"{sign} {number(bound.limit, figure.unit)}"


def number(value: float, unit: str) -> str:
    """Three or four digits that mean something, with the unit."""
    if unit == "":
        return f"{value:.0f}"
    digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 100 else 2
    return f"{value:.{digits}f} {unit}"


def markdown(table: Table) -> str:
    """The same table for a document."""
    rows = ["| " + " | ".join(HEADS) + " |", "|---|---:|---:|---:|---:|---|"]
    rows += ["| " + " | ".join(cells(figure)) + " |" for figure in table.figures]
    notes = [f"- {note}" for note in table.notes]
    return "\n".join([f"### {table.title}", "", *rows, "", *notes, ""])
