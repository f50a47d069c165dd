"""An update under way, as plain lines or as a picture that moves.

Plain lines come only when something changed, each with the time since the wait began, so that a
log of them reads as a story.
"""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Protocol

import click

from agent.cli.expectation import pace
from agent.cli.text import duration, safe
from agent.model.reasons import Strategy
from agent.wire.views import DeploymentView, ProbeView, UpdateView

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

STEPS: dict[Strategy, tuple[str, ...]] = {
    Strategy.FRESH: ("prepare", "launch", "boot", "verify", "accept", "switch"),
    Strategy.BLUE_GREEN: (
        "prepare",
        "launch",
        "boot",
        "verify",
        "accept",
        "switch",
        "soak",
        "drain",
        "retire",
    ),
    Strategy.STOP_THEN_START: (
        "prepare",
        "accept",
        "stop_old",
        "release",
        "launch",
        "boot",
        "verify",
        "switch",
        "soak",
    ),
}


class Display(Protocol):
    """Where progress is shown."""

    def show(self, update: UpdateView, deployment: DeploymentView, elapsed_s: float) -> None: ...

    def say(self, text: str, elapsed_s: float) -> None:
        """Something besides the update: the agent is away, say."""
        ...

    def close(self) -> None: ...


def steps_of(update: UpdateView) -> list[str]:
    """The steps on the good path."""
    return [s for s in STEPS[update.strategy] if s != "accept" or update.staging]


def stage_summary(update: UpdateView) -> str:
    """`3 of 12, at identity`; a stage that went wrong by name."""
    from agent.cli.detail import stage_words

    stages = stage_words(update.progress.boot_stages)
    if not stages:
        return ""
    passed = [name for name, state in stages if state in {"ok", "skipped", "warning"}]
    failed = [name for name, state in stages if state == "failed"]
    if failed:
        return f"{', '.join(failed)} failed"
    waiting = [name for name, state in stages if state == "pending"]
    at = f", at {waiting[0]}" if waiting else ""
    return f"{len(passed)} of {len(stages)} stages{at}"


def probe_summary(update: UpdateView) -> str:
    """`http 1/2, containers 0/2`."""
    return ", ".join(f"{p.name} {probe_word(p)}" for p in update.progress.probes)


def probe_word(probe: ProbeView) -> str:
    """`1/2`, or that what it heard tells nothing."""
    return "unknown" if probe.unknown is True else f"{probe.passing}/{probe.needed}"


def probe_count(update: UpdateView) -> str:
    """`2/3 probes`: those that have passed as often as they have to, or are left out."""
    probes = update.progress.probes
    passed = sum(one.unknown is True or one.passing >= one.needed for one in probes)
    return f"{passed}/{len(probes)} probes" if probes else ""


def step_words(update: UpdateView) -> list[str]:
    """What is known of the step that it is at, without times."""
    if update.step == "boot":
        return [stage_summary(update), probe_count(update), update.progress.note or ""]
    if update.step == "verify":
        return [probe_count(update), probe_summary(update)]
    return []


class Lines:
    """A line a change, for logs and pipes; with it, how that compares with this host's history."""

    def __init__(self, *, err: bool = False) -> None:
        self._last = ""
        self._err = err

    def show(self, update: UpdateView, deployment: DeploymentView, elapsed_s: float) -> None:
        words = [f"{update.status}, {update.step}", *filter(None, step_words(update))]
        if update.finished_at is None:
            self._print("; ".join(words), elapsed_s, pace(update, dt.datetime.now(dt.UTC)))
        else:
            self._print("; ".join(words), elapsed_s)

    def say(self, text: str, elapsed_s: float) -> None:
        self._print(text, elapsed_s)

    def close(self) -> None:
        return

    def _print(self, text: str, elapsed_s: float, pace: str = "") -> None:
        """Times go on by themselves: they are no change."""
        if text != self._last:
            words = safe("; ".join(filter(None, (text, pace))))
            click.echo(f"+{elapsed_s:6.1f} s  {words}", err=self._err)
            self._last = text


class Picture:
    """Steps, stages, probes and a bar, redrawn in place."""

    def __init__(self) -> None:
        from rich.live import Live

        from agent.cli.screen import terminal

        self._live: Live = Live(console=terminal(), auto_refresh=False, transient=False)
        self._live.start()
        self._note = ""
        self._seen: tuple[UpdateView, DeploymentView] | None = None

    def show(self, update: UpdateView, deployment: DeploymentView, elapsed_s: float) -> None:
        self._note = ""
        self._seen = (update, deployment)
        self._draw(elapsed_s)

    def say(self, text: str, elapsed_s: float) -> None:
        self._note = text
        self._draw(elapsed_s)

    def close(self) -> None:
        self._live.stop()

    def _draw(self, elapsed_s: float) -> None:
        if self._seen is not None:
            self._live.update(drawing(*self._seen, elapsed_s, self._note), refresh=True)


def drawing(
    update: UpdateView, deployment: DeploymentView, elapsed_s: float, note: str = ""
) -> RenderableType:
    """One picture of an update."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from agent.cli.overview import update_text

    title = Text.assemble((f"{safe(deployment.name)}  ", "bold"))
    title.append_text(update_text(update))
    title.append(f"  {update.strategy}, {duration(elapsed_s)}", style="dim")
    rows = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1, 0, 0))
    for name, mark, words in _rows(update):
        rows.add_row(f" {mark}", name, Text(safe(words), style="dim"))
    parts: list[RenderableType] = [title, rows]
    if update.progress.percent is not None and update.finished_at is None:
        parts.append(_bar(update.progress.percent))
    if note:
        parts.append(Text(safe(note), style="yellow"))
    return Group(*parts)


def _bar(percent: int) -> RenderableType:
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    line = Table.grid()
    line.add_row(
        ProgressBar(
            total=100, completed=percent, width=40, complete_style="cyan", finished_style="green"
        )
    )
    return line


def _rows(update: UpdateView) -> list[tuple[str, str, str]]:
    """(step, mark, words) of each step of the good path, and of the way out if it is taken."""
    steps = steps_of(update)
    if update.step not in steps:
        return [(update.step, "[yellow]↺[/]", "undoing what was begun")]
    at = steps.index(update.step)
    rows = []
    for n, step in enumerate(steps):
        if n < at or update.status == "completed":
            rows.append((step, "[green]✓[/]", ""))
        elif n > at:
            rows.append((f"[dim]{step}[/]", " ", ""))
        elif update.finished_at is not None:
            rows.append((step, "[red]✗[/]", str(update.status)))
        else:
            rows.append((f"[bold]{step}[/]", "[cyan]●[/]", _now(update)))
    return rows


def _now(update: UpdateView) -> str:
    now, deadline = dt.datetime.now(dt.UTC), update.progress.deadline_at
    left = (deadline - now).total_seconds() if deadline else 0.0
    words = ["waits for accept" if update.step == "accept" else "", *step_words(update)]
    words += [pace(update, now), f"{duration(left)} left at most" if left > 0 else ""]
    return ", ".join(filter(None, words))
