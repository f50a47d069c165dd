"""Who may do what, by listener."""

from __future__ import annotations

import pytest

from agent.api.roles import Permission, Role, may
from agent.api.routes import ROUTES
from tests.api_bodies import DEPLOY

PUBLIC = {"/healthz", "/readyz", "/status", "/metrics", "/openapi.json"}


def test_the_loopback_listener_reads_the_status_and_nothing_else() -> None:
    readable = {route.path for route in ROUTES if may(Role.STATUS, route.permission)}
    assert readable == PUBLIC


def test_an_observer_changes_nothing() -> None:
    allowed = {route.name for route in ROUTES if may(Role.OBSERVER, route.permission)}
    changing = {route.name for route in ROUTES if route.method != "GET"}
    assert allowed & changing == {"plan"}


def test_what_a_guest_printed_stays_on_the_host() -> None:
    console = next(route for route in ROUTES if route.name == "console")
    assert [role for role in Role if may(role, console.permission)] == [Role.LOCAL]
    assert all(may(Role.LOCAL, permission) for permission in Permission)


@pytest.mark.parametrize("path", sorted(PUBLIC))
async def test_what_is_public_answers_on_loopback(api, path: str) -> None:
    assert (await api.ask_status("GET", path)).status == 200
    assert (await api.ask_status("HEAD", path)).status == 200
    assert (await api.ask_status("GET", f"{path}?decorated=1")).status == 200


async def test_everything_else_is_forbidden_on_loopback_and_does_nothing(api) -> None:
    for route in ROUTES:
        if route.path in PUBLIC:
            continue
        path = route.path.format(name="web", id="aaaaaaaa", bdf="0000:01:00.0")
        answer = await api.ask_status(route.method, path, json=DEPLOY)
        assert (answer.status, answer.json["code"]) == (403, "forbidden"), route.name
    assert (await api.ask_status("GET", "/v1/nonsense")).status == 404
    assert api.engine.calls == []
