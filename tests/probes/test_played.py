"""Which containers a guest says that it only acts out; the guest is not trusted."""

from __future__ import annotations

from typing import Any

import pytest

from agent.probes.answers import played_containers


def test_only_those_that_say_so_are_played() -> None:
    rows = [{"name": "a", "played": True}, {"name": "b"}, {"name": "c", "played": "yes"}]
    assert played_containers({"containers": rows}) == ["a"]


@pytest.mark.parametrize(
    "document",
    [
        None,
        {},
        {"containers": "x"},
        {"containers": [1, None, {"played": True}, {"name": 3, "played": True}]},
    ],
)
def test_what_has_another_form_plays_nothing(document: dict[str, Any] | None) -> None:
    assert played_containers(document) == []


def test_what_is_told_of_them_is_bounded() -> None:
    rows = [{"name": "x" * 9999, "played": True}] * 999
    told = played_containers({"containers": rows})
    assert len(told) == 64
    assert {len(name) for name in told} == {128}
