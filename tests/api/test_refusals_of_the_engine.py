"""The API over the real engine: what it refuses, by status, code and reasons."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from agent.api.listeners import local_listener
from agent.api.server import ApiServer
from agent.model.ids import DeploymentName
from agent.model.update import Step
from agent.updates.port import Engine
from simulator.instant_host import InstantHost
from simulator.manual_clock import ManualClock
from simulator.memory_store import MemoryStore
from simulator.simulated_host import release
from tests.fakes.api_server import surface_of

NAME = DeploymentName("web")
WEB = "/v1/deployments/web"
CURRENT = f"{WEB}/updates/current"


class Served:
    """`ask` answers (status, body)."""

    def __init__(self, host: InstantHost, session: aiohttp.ClientSession) -> None:
        self.host = host
        self._session = session

    async def ask(self, method: str, path: str, **body: Any) -> tuple[int, Any]:
        url = f"http://agent{path}"
        async with self._session.request(method, url, json=body or None) as answer:
            return answer.status, await answer.json(content_type=None)

    async def refused(self, method: str, path: str, **body: Any) -> str:
        """A conflict; its code, which is that of its first reason if it has any."""
        status, answer = await self.ask(method, path, **body)
        assert status == 409, answer
        assert [one["code"] for one in answer.get("reasons", [])][:1] in ([], [answer["code"]])
        return str(answer["code"])

    async def at(self, step: Step) -> None:
        await self.host.until(
            NAME, lambda facts: facts.update is not None and facts.update.step is step
        )


@pytest.fixture
async def api(short_dir: Path) -> AsyncIterator[Served]:
    """`web` serves v1."""
    clock = ManualClock()
    host = InstantHost(MemoryStore(clock.now), clock, short_dir)
    await host.runtime.start()
    engine: Engine = host.engine
    server = ApiServer(surface_of(engine), [local_listener(short_dir / "agent.sock")])  # type: ignore[arg-type]
    await server.start()
    connector = aiohttp.UnixConnector(str(short_dir / "agent.sock"))
    async with aiohttp.ClientSession(connector=connector) as session:
        await host.deploy(NAME, "v1")
        yield Served(host, session)
    await server.close()
    await host.runtime.close()


async def test_a_running_update_keeps_everything_else_away(api: Served) -> None:
    status, _ = await api.ask("POST", f"{WEB}/updates", tag="v2", staging=True)
    assert status == 202
    await api.at(Step.ACCEPT)
    for method, path in (
        ("POST", f"{WEB}/stop"),
        ("DELETE", WEB),
        ("POST", f"{WEB}/updates"),
        ("POST", f"{WEB}/rollback"),
    ):
        body = {"to": "v1"} if path.endswith("rollback") else {}
        assert await api.refused(method, path, **body) == "update_in_progress", path
    assert await api.refused("POST", f"{WEB}/start") == "running"
    assert await api.refused("POST", f"{CURRENT}/retry") == "nothing_to_retry"
    assert (await api.ask("POST", f"{CURRENT}/accept"))[0] == 202


async def test_of_two_updates_at_once_one_gets_a_conflict(api: Served) -> None:
    asked = [api.ask("POST", f"{WEB}/updates", tag=tag) for tag in ("v2", "v3")]
    answers = sorted(await asyncio.gather(*asked), key=lambda answer: answer[0])
    assert [status for status, _ in answers] == [202, 409]
    assert answers[1][1]["code"] == "update_in_progress"


async def test_a_drained_host_says_so(api: Served) -> None:
    await api.ask("POST", "/v1/host/drain")
    for path in ("updates", "rollback"):
        body = {"to": "v1"} if path == "rollback" else {"tag": "v2"}
        assert await api.refused("POST", f"{WEB}/{path}", **body) == "host_draining"
    status, decision = await api.ask("POST", "/v1/plan", deployment="web", tag="v2")
    assert (status, decision["strategy"]) == (200, "refuse")
    assert decision["reasons"][0]["code"] == "host_draining"


async def test_a_cancel_that_comes_too_late_names_the_way_back(api: Served) -> None:
    await api.host.update(NAME, "v2")
    status, answer = await api.ask("POST", f"{CURRENT}/cancel")
    assert (status, answer["code"]) == (409, "no_update")
    assert "enclave-agent rollback web --to v1" in answer["detail"]


async def test_a_plan_with_the_name_of_a_secret_is_the_update_with_its_value(api: Served) -> None:
    needy = msgspec.structs.replace(release("v2"), secret_names=("KEY",))
    api.host.releases.made["v2"] = needy
    asked = {"deployment": "web", "tag": "v2"}
    _, without = await api.ask("POST", "/v1/plan", **asked)
    assert without["reasons"][0]["code"] == "secrets_missing"
    assert await api.refused("POST", f"{WEB}/updates", tag="v2") == "secrets_missing"
    _, given = await api.ask("POST", "/v1/plan", **asked, secrets=["KEY"])
    status, update = await api.ask("POST", f"{WEB}/updates", tag="v2", secrets={"KEY": "value"})
    assert (status, update["strategy"]) == (202, given["strategy"])


async def test_a_value_where_a_name_is_asked_for_is_refused_and_not_shown(api: Served) -> None:
    asked = {"deployment": "web", "secrets": {"KEY": "s3cret"}}
    status, answer = await api.ask("POST", "/v1/plan", **asked)
    assert (status, answer["field"], "s3cret" in str(answer)) == (400, "secrets", False)


async def test_an_ipv6_listener_names_its_field(api: Served) -> None:
    api.host.traffic.refusal = lambda one: f"{one} is IPv6" if one.is_ipv6 else None
    for body, field in (
        ({"listen": "[::1]:443"}, "listen"),
        ({"publish": [{"listen": "[::1]:443", "guest_port": 443}]}, "publish[0]"),
    ):
        status, answer = await api.ask("POST", f"{WEB}/updates", **body)
        assert (status, answer["field"]) == (400, field)


async def source_asked(api: Served, times: int) -> None:
    async with asyncio.timeout(30):
        while len(api.host.releases.asked) < times:
            await asyncio.sleep(0.01)


async def test_what_a_client_that_left_has_asked_for_is_dropped_and_may_be_asked_anew(
    api: Served, short_dir: Path
) -> None:
    """The source is slow: the request is not admitted yet. Its key is free again then."""
    api.host.releases.answers.clear()
    before = len(api.host.releases.asked)
    body, key = b'{"tag": "v2"}', b"Idempotency-Key: once\r\n"
    head = b"POST %s/updates HTTP/1.1\r\nHost: agent\r\n" % WEB.encode() + key
    head += b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    _, impatient = await asyncio.open_unix_connection(short_dir / "agent.sock")
    impatient.write(head + body)
    await source_asked(api, before + 1)
    impatient.close()
    reader, patient = await asyncio.open_unix_connection(short_dir / "agent.sock")
    patient.write(head + body)
    await source_asked(api, before + 2)
    api.host.releases.answers.set()
    async with asyncio.timeout(30):
        assert (await reader.readline()).split()[1] == b"202"
    patient.close()
    _, answer = await api.ask("GET", f"{WEB}/updates")
    assert [one["tag"] for one in answer["updates"]] == ["v2", "v1"]


async def test_a_cancel_calls_off_what_waits_for_its_release(api: Served) -> None:
    api.host.releases.answers.clear()
    before = len(api.host.releases.asked)
    waiting = asyncio.create_task(api.refused("POST", f"{WEB}/updates", tag="v2"))
    await source_asked(api, before + 1)
    status, answer = await api.ask("POST", f"{CURRENT}/cancel")
    assert (status, answer["deployment"]["tag"]) == (200, "v1")
    assert await waiting == "cancelled"
    assert await api.refused("POST", f"{CURRENT}/cancel") == "no_update"


async def test_a_tag_that_moved_is_refused_unless_accepted(api: Served) -> None:
    moved = msgspec.structs.replace(release("v1"), digest="f" * 64)
    api.host.releases.made["v1"] = moved
    assert await api.refused("POST", f"{WEB}/updates", tag="v1") == "tag_moved"
    _, plan = await api.ask("POST", "/v1/plan", deployment="web", tag="v1")
    assert [one["code"] for one in plan["reasons"]] == ["tag_moved"]
    status, update = await api.ask("POST", f"{WEB}/updates", tag="v1", accept_moved_tag=True)
    assert (status, update["tag"]) == (202, "v1")
