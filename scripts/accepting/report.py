"""What was found, step by step, for a person to keep."""

from __future__ import annotations

import datetime as dt
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Result(StrEnum):
    """How a step ended. `PLANNED`: a dry run said what it would do."""

    PASSED = "passed"
    WARNED = "warned"
    FAILED = "FAILED"
    SKIPPED = "skipped"
    PLANNED = "planned"


@dataclass(frozen=True)
class Step:
    """One thing that was proven, or was not."""

    what: str
    result: Result
    found: str
    mend: str = ""
    took_s: float | None = None


def failed(steps: Sequence[Step]) -> bool:
    return any(step.result is Result.FAILED for step in steps)


def line(step: Step) -> str:
    """For a terminal."""
    took = "" if step.took_s is None else f" ({step.took_s:.1f} s)"
    mend = f"; mend: {step.mend}" if step.mend and step.result is not Result.PASSED else ""
    return f"{step.result:8} {step.what}: {step.found}{took}{mend}"


def markdown(steps: Sequence[Step], *, config: str, tee: str, dry_run: bool) -> str:
    """The report whole."""
    now = dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M UTC")
    verdict = "FAILED" if failed(steps) else "dry run" if dry_run else "passed"
    rows = [
        f"| {_cell(step.what)} | {step.result} | {_cell(step.found)} | {_cell(step.mend)} "
        f"| {'' if step.took_s is None else f'{step.took_s:.1f}'} |"
        for step in steps
    ]
    return "\n".join(
        [
            f"# Acceptance of {platform.node()}: {verdict}",
            "",
            f"{now}; kernel {platform.release()}; configuration {config}; tee {tee}",
            "",
            "| step | result | found | mend | s |",
            "|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
