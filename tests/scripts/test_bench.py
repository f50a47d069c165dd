"""The benches of what decides and of what is recorded, in their smallest form."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import planner, transitions
from bench.figures import Table
from bench.options import Options
from bench.place import Place
from bench.show import Show

MEASURES = {"planner": planner, "transitions": transitions}


@pytest.mark.parametrize("name", MEASURES)
async def test_a_bench_measures_what_it_states_a_bound_for(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planner, "_RUNS", 1)
    monkeypatch.setattr(planner, "_RUN_STEPS", 500)
    monkeypatch.setattr(transitions, "_TURNS_A_ROUND", 1)
    monkeypatch.setattr(transitions, "_BATCH", 2)
    place = Place()
    place.state = tmp_path
    show = Show(tmp_path / "results.md")
    table: Table = await MEASURES[name].measure(place, Options(rounds=2), show)
    assert all(figure.measured > 0 for figure in table.figures)
    assert any(figure.bound for figure in table.figures)
