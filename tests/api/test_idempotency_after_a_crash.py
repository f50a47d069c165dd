"""The agent died after it had carried a request out, and before it kept the answer."""

from __future__ import annotations

import pytest

from tests.api_bodies import DEPLOY

KEY = {"Idempotency-Key": "once-1"}
WEB = "/v1/deployments/web"


@pytest.fixture
async def crashed(api) -> str:
    """Told once; its answer was lost. The id of the update that it began."""
    first = await api.ask("PUT", WEB, json=DEPLOY, headers=KEY)
    assert first.status == 202
    api.answers.kept.clear()
    return first.json["update"]["id"]


async def test_the_request_told_again_finds_the_update_that_it_began(api, crashed: str) -> None:
    again = await api.ask("PUT", WEB, json=DEPLOY, headers=KEY)
    assert (again.status, again.json["update"]["id"]) == (202, crashed)
    assert again.json["deployment"]["name"] == "web"
    assert again.headers["Idempotent-Replayed"] == "true"
    assert len(api.engine.calls) == 1


async def test_it_is_kept_then(api, crashed: str) -> None:
    found = await api.ask("PUT", WEB, json=DEPLOY, headers=KEY)
    again = await api.ask("PUT", WEB, json=DEPLOY, headers=KEY)
    assert found.text == again.text
    assert len(api.answers.kept) == 1


async def test_an_update_that_has_ended_meanwhile_is_not_done_again(api, crashed: str) -> None:
    api.engine.finish("web")
    body = {"variables": {"A": "x"}}
    first = await api.ask("POST", f"{WEB}/updates", json=body, headers=KEY)
    assert first.status == 202
    api.engine.finish("web")
    api.answers.kept.clear()
    again = await api.ask("POST", f"{WEB}/updates", json=body, headers=KEY)
    assert (again.status, again.json["id"]) == (202, first.json["id"])
    assert len(api.engine.calls) == 2


async def test_another_body_is_refused_there_too(api, crashed: str) -> None:
    other = await api.ask("PUT", WEB, json=DEPLOY | {"tag": "v2"}, headers=KEY)
    assert (other.status, other.json["code"]) == (422, "idempotency_key_reused")


async def test_another_key_is_another_request(api, crashed: str) -> None:
    other = await api.ask("PUT", WEB, json=DEPLOY, headers={"Idempotency-Key": "once-2"})
    assert (other.status, other.json["code"]) == (409, "exists")


async def test_the_mark_in_the_store_shows_neither_key_nor_body(api, crashed: str) -> None:
    (update,) = await api.engine.updates("web")
    assert update.request is not None
    assert "once-1" not in update.request
    assert DEPLOY["listen"] not in update.request
