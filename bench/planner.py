"""The pure planner: how many steps it decides in a second of CPU time.

CPU time, because nothing in it waits: what others do on the machine does not count as its own.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from agent.updates.planner.plan import plan
from agent.updates.planner.types import Situation
from bench.figures import Bound, Figure, Table, median
from bench.options import Options
from bench.place import Place
from bench.rehearsal import rehearse
from bench.show import Show

LEAST_PER_S = 50_000
_RUNS = 15
_RUN_STEPS = 10_000


async def measure(_place: Place, _options: Options, show: Show) -> Table:
    """Over the situations of whole simulated updates, as they came, and over those that write."""
    asked = await rehearse()
    whole = [situation for situation, _ in asked]
    writing = [situation for situation, answer in asked if answer.write]
    acting = sum(bool(answer.actions) for _, answer in asked)
    show.line(f"{len(whole)} steps of whole simulated updates")
    runs = [(_steps_per_s(whole), _steps_per_s(writing)) for _ in range(_RUNS)]
    all_per_s, writing_per_s = zip(*runs, strict=True)
    table = Table("updates: the planner")
    table.figures = [
        Figure(
            "steps/s of whole updates",
            median(all_per_s),
            "/s",
            bound=Bound(LEAST_PER_S, at_least=True),
            note=f"{_RUNS} runs, {min(all_per_s):.0f} to {max(all_per_s):.0f}",
        ),
        Figure("steps/s, only those that write something", median(writing_per_s), "/s"),
    ]
    table.notes = [
        "a second is one of CPU time; a step is one question to the planner and its answer",
        f"{len(whole)} steps: {len(writing)} write, {acting} act, "
        f"{len(whole) - len(writing) - acting} rest",
    ]
    return table


def _steps_per_s(situations: Sequence[Situation]) -> float:
    times = _RUN_STEPS // len(situations)
    began = time.process_time()
    for _ in range(times):
        for situation in situations:
            plan(situation)
    return times * len(situations) / (time.process_time() - began)
