"""What a guest says of itself and of its containers; the guest is not trusted."""

from __future__ import annotations

from typing import Any

import pytest

from agent.probes.told_containers import guest_itself, told_containers


def states(*rows: dict[str, Any]) -> list[str]:
    return [one.state for one in told_containers({"containers": list(rows)})]


def test_only_those_that_say_so_are_played() -> None:
    rows = [{"name": "a", "played": True}, {"name": "b"}, {"name": "c", "played": "yes"}]
    found = told_containers({"containers": rows})
    assert [(one.name, one.played) for one in found] == [("a", True), ("b", False), ("c", False)]


@pytest.mark.parametrize(
    ("row", "state"),
    [
        ({"status": "running", "health": {"status": "healthy"}}, "running, healthy"),
        ({"status": "running", "health": {"status": "none"}}, "running"),
        ({"status": "running", "restart_count": 2}, "running, restarted 2 times"),
        ({"status": "exited", "exit_code": 3}, "exited with code 3"),
        (
            {"status": "exited", "exit_code": 137, "oom_killed": True},
            "exited with code 137, killed for want of memory",
        ),
        ({"status": "created", "error": "no such image\n"}, "created: no such image"),
        ({}, "not known"),
        ({"status": 7, "health": [], "restart_count": "x"}, "not known"),
    ],
)
def test_how_each_is_doing_is_told_in_one_line(row: dict[str, Any], state: str) -> None:
    assert states({"name": "web", **row}) == [state]


@pytest.mark.parametrize(
    "document",
    [None, {}, {"containers": "x"}, {"containers": [1, None, {"played": True}, {"name": 3}]}],
)
def test_what_has_another_form_tells_nothing(document: dict[str, Any] | None) -> None:
    assert told_containers(document) == ()


def test_what_is_told_of_them_is_bounded() -> None:
    row = {"name": "x" * 9999, "image": "y" * 9999, "status": "z" * 9999, "played": True}
    told = told_containers({"containers": [row] * 999})
    assert len(told) == 64
    assert {(len(one.name), len(one.image), len(one.state)) for one in told} == {(128, 512, 200)}


@pytest.mark.parametrize(
    ("document", "guest"),
    [
        (None, None),
        ({"stages": []}, None),
        ({"guest": 3}, None),
        ({"guest": "\x1b"}, None),
        ({"guest": "reference\x1bguest"}, "reference guest"),
    ],
)
def test_a_guest_may_say_whose_it_is(document: dict[str, Any] | None, guest: str | None) -> None:
    assert guest_itself(document) == guest
