"""What was measured: a figure, its baseline of the same run, and the bound that it must keep."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field


def median(values: Sequence[float]) -> float:
    """The middle of what was measured; NaN of nothing, which meets no bound."""
    return statistics.median(values) if values else math.nan


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that so many percent do not exceed; NaN of nothing."""
    if not values:
        return math.nan
    ranked = sorted(values)
    return ranked[max(0, math.ceil(percent / 100 * len(ranked)) - 1)]


@dataclass(frozen=True, slots=True)
class Bound:
    """`of`: "measured", "ratio" (measured / baseline) or "excess" (measured - baseline).

    Reaching the limit itself is allowed.
    """

    limit: float
    of: str = "measured"
    at_least: bool = False

    def met_by(self, value: float) -> bool:
        """NaN meets nothing."""
        return value >= self.limit if self.at_least else value <= self.limit


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of a table. Without a bound it is only stated."""

    what: str
    measured: float
    unit: str
    baseline: float | None = None
    baseline_is: str = ""
    bound: Bound | None = None
    note: str = ""
    paired_ratio: float | None = None  # a median of ratios, where rounds were paired
    loss: bool = False  # it counts what may never be lost

    @property
    def ratio(self) -> float | None:
        if self.paired_ratio is not None:
            return self.paired_ratio
        return self.measured / self.baseline if self.baseline else None

    @property
    def excess(self) -> float | None:
        return None if self.baseline is None else self.measured - self.baseline

    @property
    def met(self) -> bool | None:
        """None: nothing is asked of it."""
        if self.bound is None:
            return None
        value = {"measured": self.measured, "ratio": self.ratio, "excess": self.excess}[
            self.bound.of
        ]
        return value is not None and self.bound.met_by(value)


@dataclass
class Table:
    """The figures of one measure, and what they were measured with."""

    title: str
    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def missed(self) -> list[Figure]:
        return [figure for figure in self.figures if figure.met is False]
