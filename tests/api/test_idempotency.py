"""The same request told twice is done once, also at once, also after a restart."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import pytest

from agent.api.listeners import local_listener
from agent.api.server import ApiServer
from agent.store.port import StoreError
from agent.updates.orders import Caller, NewDeployment
from tests.api_bodies import DEPLOY
from tests.fakes.api_server import MemoryAnswers, surface_of
from tests.fakes.engine import FakeEngine

KEY = {"Idempotency-Key": "once-1"}


async def test_the_same_key_and_body_get_the_same_answer_and_one_effect(api) -> None:
    first = await api.ask("PUT", "/v1/deployments/web", json=DEPLOY, headers=KEY)
    again = await api.ask("PUT", "/v1/deployments/web", json=DEPLOY, headers=KEY)
    assert (first.status, first.text) == (again.status, again.text)
    assert again.headers["Idempotent-Replayed"] == "true"
    assert len(api.engine.calls) == 1


async def test_the_same_key_with_another_body_is_refused(api) -> None:
    await api.ask("PUT", "/v1/deployments/web", json=DEPLOY, headers=KEY)
    other = await api.ask("PUT", "/v1/deployments/web", json=DEPLOY | {"tag": "v2"}, headers=KEY)
    assert (other.status, other.json["code"]) == (422, "idempotency_key_reused")
    assert len(api.engine.calls) == 1


async def test_the_same_key_elsewhere_is_another_request(api) -> None:
    await api.ask("PUT", "/v1/deployments/web", json=DEPLOY, headers=KEY)
    body = DEPLOY | {"listen": "127.0.0.1:9443"}
    other = await api.ask("PUT", "/v1/deployments/web2", json=body, headers=KEY)
    assert other.status == 202


async def test_a_refusal_is_an_answer_and_is_kept(api) -> None:
    await api.ask("POST", "/v1/host/drain")
    first = await api.ask("PUT", "/v1/deployments/web", json=DEPLOY, headers=KEY)
    await api.ask("POST", "/v1/host/undrain")
    again = await api.ask("PUT", "/v1/deployments/web", json=DEPLOY, headers=KEY)
    assert first.status == again.status == 409
    assert first.json == again.json
    assert again.headers["Content-Type"] == "application/problem+json"


async def test_a_failure_of_ours_is_not_kept(api) -> None:
    api.engine.raises = StoreError("locked")
    first = await api.ask("PUT", "/v1/deployments/web", json=DEPLOY, headers=KEY)
    again = await api.ask("PUT", "/v1/deployments/web", json=DEPLOY, headers=KEY)
    assert (first.status, again.status) == (503, 202)


async def test_what_was_done_is_told_even_if_its_answer_cannot_be_kept(api) -> None:
    api.answers.raises = StoreError("disk full")
    answer = await api.ask("PUT", "/v1/deployments/web", json=DEPLOY, headers=KEY)
    assert answer.status == 202


async def test_only_a_keyed_digest_of_a_body_with_secrets_is_kept(api) -> None:
    body = DEPLOY | {"secrets": {"KEY": "hunter2"}}
    await api.ask("PUT", "/v1/deployments/web", json=body, headers=KEY)
    (kept,) = api.answers.kept.values()
    assert "hunter2" not in repr(kept)
    assert len(kept.body_digest) == 64


@pytest.mark.parametrize("key", ["", " ", "x" * 201, "käse"])
async def test_a_key_that_is_none_is_refused(api, key: str) -> None:
    headers = {"Idempotency-Key": key}
    answer = await api.ask("PUT", "/v1/deployments/web", json=DEPLOY, headers=headers)
    assert (answer.status, answer.json["field"]) == (400, "Idempotency-Key")


async def test_reading_needs_no_key_and_ignores_one(api) -> None:
    assert (await api.ask("GET", "/status", headers=KEY)).status == 200
    plan = {"deployment": "web", "tag": "v1"}
    assert (await api.ask("POST", "/v1/plan", json=plan, headers=KEY)).status == 200
    assert api.answers.kept == {}


class _SlowEngine(FakeEngine):
    """Holds every deployment back until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = asyncio.Event()
        self.go = asyncio.Event()

    async def deploy(self, request: NewDeployment, caller: Caller):
        self.begun.set()
        await self.go.wait()
        return await super().deploy(request, caller)


async def test_requests_at_once_with_one_key_are_executed_once(short_dir: Path) -> None:
    engine = _SlowEngine()
    path = short_dir / "agent.sock"
    surface = surface_of(engine)
    server = ApiServer(surface, [local_listener(path)])
    await server.start()

    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session:

        async def ask() -> tuple[int, str]:
            url = "http://agent/v1/deployments/web"
            async with session.put(url, json=DEPLOY, headers=KEY) as response:
                return response.status, await response.text()

        asked = [asyncio.create_task(ask()) for _ in range(5)]
        await engine.begun.wait()
        engine.go.set()
        answers = set(await asyncio.gather(*asked))
    await server.close()
    assert len(answers) == 1
    assert len(engine.calls) == 1
    assert surface.idempotency.waiting == 0


async def test_a_key_outlives_the_agent(short_dir: Path) -> None:
    engine, answers = FakeEngine(), MemoryAnswers()
    told = []
    for _ in range(2):
        path = short_dir / "agent.sock"
        server = ApiServer(surface_of(engine, answers), [local_listener(path)])
        await server.start()
        connector = aiohttp.UnixConnector(str(path))
        url = "http://agent/v1/deployments/web"
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.put(url, json=DEPLOY, headers=KEY) as response,
        ):
            told.append(await response.text())
        await server.close()
    assert told[0] == told[1]
    assert len(engine.calls) == 1
