"""The real daemon and a real coordinator: what is told, what is done, and who may die when."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.coordinator.world import Coordinator, rss_kib, same_end, world
from tests.fakes.daemon_process import Daemon
from tests.fakes.fake_vms import settings
from tests.fakes.fleet import HOST
from tests.fakes.host_truth import discrepancies

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]
_HELLO = "/v1/deployments/hello"


def body(daemon: Daemon, tag: str = "v1") -> dict[str, Any]:
    return {
        "tag": tag,
        "repo": "hello",
        "listen": f"127.0.0.1:{daemon.https}",
        "publish": [{"listen": f"127.0.0.1:{daemon.plain}", "guest_port": 8080}],
    }


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(parts: tuple[Path, Path]) -> AsyncIterator[tuple[Daemon, Coordinator]]:
    """One world for the tests that leave it as it was: `hello` runs, nothing is updated."""
    program, source = parts
    async with world(source, **settings(program)) as (daemon, coordinator):
        await deploy(daemon, coordinator)
        yield daemon, coordinator


async def deploy(daemon: Daemon, coordinator: Coordinator) -> None:
    answer = await coordinator.insist(HOST, "PUT", _HELLO, body(daemon), key="deploy")
    assert answer.status == 202, answer
    await coordinator.ended(HOST, "v1")


async def test_a_coordinator_deploys_and_updates_by_what_it_is_told(
    shared: tuple[Daemon, Coordinator],
) -> None:
    daemon, coordinator = shared
    await coordinator.until(
        lambda: (coordinator.said(HOST) or {})["next_update"]["strategy"] == "blue_green"
    )
    said = coordinator.said(HOST)
    assert said is not None
    assert said["next_update"]["downtime_estimate_s"]["samples"] == 0
    assert coordinator.ledger.inventory(HOST) is not None
    answer = await coordinator.call(HOST, "POST", f"{_HELLO}/updates", {"tag": "v2"}, key="update")
    assert answer.status == 202
    await coordinator.ended(HOST, "v2")
    events = await same_end(daemon, coordinator)
    asked = [event for event in events if event.actor != "agent"]
    assert {(event.actor, event.epoch) for event in asked if event.kind == "update"} == {
        ("spiffe://fleet.test/coordinator", 1)
    }
    async with asyncio.timeout(10):
        while (status := (await daemon.get("/status")).body["coordinator"])["outbox"]:
            await asyncio.sleep(0.02)
    assert (status["configured"], status["connected"]) == (True, True)
    assert status["last_report_at"] < status["session_expires_at"]
    print(f"agent RSS {rss_kib(daemon.pid) / 1024:.1f} MiB")


async def test_a_change_is_told_at_once_and_otherwise_now_and_then(
    shared: tuple[Daemon, Coordinator],
) -> None:
    daemon, coordinator = shared
    await coordinator.until(lambda: coordinator.ledger.reports(HOST) > 2)
    sent, begun = coordinator.ledger.reports(HOST), time.monotonic()
    await asyncio.sleep(2)
    rate = (coordinator.ledger.reports(HOST) - sent) / (time.monotonic() - begun)
    assert 0 < rate < 3, rate
    delays = []
    for verb in ("drain", "undrain") * 5:
        known = coordinator.ledger.newest_event(HOST)
        await daemon.send("POST", f"/v1/host/{verb}")
        begun = time.monotonic()
        while coordinator.ledger.newest_event(HOST) == known:
            await asyncio.sleep(0.002)
        delays.append(time.monotonic() - begun)
    print(f"{rate:.1f} reports/s at rest; a change was known after {max(delays):.3f} s at most")
    assert sorted(delays)[len(delays) // 2] < 0.5  # half of the interval: not by its pace


async def test_two_coordinators_race_for_the_last_slot_and_one_gets_it(
    parts: tuple[Path, Path],
) -> None:
    program, source = parts
    async with world(source, **settings(program)) as (daemon, coordinator):
        free = (await daemon.get("/v1/capacity")).body["free"]
        wanted = {"demand": {"memory_mib": 64, "vcpus": free["vcpus"]}, "ttl_s": 600}
        keys = ("one", "other")
        answers = await asyncio.gather(
            *(coordinator.call(HOST, "POST", "/v1/leases", wanted, key=key) for key in keys)
        )
        assert sorted(answer.status for answer in answers) == [201, 409]
        key, lease = next(
            (key, answer.body)
            for key, answer in zip(keys, answers, strict=True)
            if answer.status == 201
        )
        path = f"/v1/leases/{lease['id']}"
        daemon.kill()
        await daemon.up()
        told = await coordinator.insist(HOST, "POST", "/v1/leases", wanted, key=key)
        assert told.body["id"] == lease["id"]  # whose answer was lost asks again, and has one
        assert (await coordinator.call(HOST, "GET", path)).status == 200
        assert (await coordinator.call(HOST, "DELETE", path)).status == 204
        short = await coordinator.call(HOST, "POST", "/v1/leases", wanted | {"ttl_s": 1})
        assert short.status == 201
        path = f"/v1/leases/{short.body['id']}"
        while (await coordinator.call(HOST, "GET", path)).status != 410:
            await asyncio.sleep(0.1)
        wanted = {"deployment": "hello", "tag": "v1", "ttl_s": 60}
        again = await coordinator.call(HOST, "POST", "/v1/leases", wanted)
        assert again.status == 201
        full = body(daemon) | {"lease": again.body["id"]}
        assert (await coordinator.call(HOST, "PUT", _HELLO, full, key="d")).status == 202
        gone = await coordinator.call(HOST, "GET", f"/v1/leases/{again.body['id']}")
        assert gone.status == 404
        await coordinator.ended(HOST, "v1")
        await same_end(daemon, coordinator)


DELAYS_S = (0.0, 0.1, 0.2, 0.3)  # into different steps of an update


@pytest.mark.parametrize("victim", ["agent", "coordinator"])
async def test_whoever_is_killed_in_an_update_nothing_is_lost_or_doubled(
    parts: tuple[Path, Path], victim: str
) -> None:
    program, source = parts
    async with world(source, **settings(program)) as (daemon, coordinator):
        await deploy(daemon, coordinator)
        tags = ["v2", "v1"] * 2
        for after_s, tag in zip(DELAYS_S, tags, strict=True):
            path, key = f"{_HELLO}/updates", f"update-{after_s}"
            asking = asyncio.create_task(
                coordinator.insist(HOST, "POST", path, {"tag": tag}, key=key)
            )
            if victim == "agent":
                await asyncio.sleep(after_s)
                daemon.kill()
                await daemon.up()
            else:
                coordinator.kill()
                await asyncio.sleep(after_s)
                coordinator.start()
            first = await asking
            assert first.status == 202, first
            again = await coordinator.insist(HOST, "POST", path, {"tag": tag}, key=key)
            assert again.body["id"] == first.body["id"]
            await coordinator.ended(HOST, tag)
        updates = (await daemon.get(f"{_HELLO}/updates")).body["updates"]
        assert [update["tag"] for update in updates] == [*reversed(tags), "v1"]
        assert {update["status"] for update in updates} == {"completed"}
        await same_end(daemon, coordinator)
        assert await discrepancies(daemon) == []


async def test_away_for_long_the_agent_goes_on_and_nothing_is_lost(
    parts: tuple[Path, Path],
) -> None:
    program, source = parts
    async with world(source, **settings(program)) as (daemon, coordinator):
        coordinator.ledger.set("session_ttl_s", 1)
        await deploy(daemon, coordinator)
        coordinator.kill()
        assert (await daemon.update(tag="v2")).status == 202
        assert (await daemon.over())["status"] == "completed"
        while True:
            status = (await daemon.get("/status")).body["coordinator"]
            if not status["connected"] and status["outbox"] > 5:
                break
            await asyncio.sleep(0.1)
        coordinator.start()
        await coordinator.ended(HOST, "v2")
        await same_end(daemon, coordinator)


async def test_a_coordinator_of_the_past_is_refused_until_somebody_says_so(
    parts: tuple[Path, Path],
) -> None:
    program, source = parts
    async with world(source, **settings(program)) as (daemon, coordinator):
        coordinator.ledger.set("epoch", 7)
        coordinator.epoch = 7
        await deploy(daemon, coordinator)
        await same_end(daemon, coordinator)
        coordinator.ledger.set("epoch", 6)
        coordinator.epoch = 6
        answer = await coordinator.call(HOST, "POST", "/v1/host/drain", key="k")
        assert (answer.status, answer.code) == (409, "stale_epoch")
        while not (problems := (await daemon.get("/status")).body["problems"]):
            await asyncio.sleep(0.05)
        assert [problem["code"] for problem in problems] == ["coordinator_restored"]
        assert "coordinator-epoch reset" in problems[0]["mend"]
        code, out, _ = await daemon.cli("coordinator-epoch", "reset")
        assert (code, "epoch 7 is forgotten" in out) == (0, True)
        answer = await coordinator.call(HOST, "POST", "/v1/host/drain", key="k")
        assert answer.status == 200
        while (await daemon.get("/status")).body["problems"]:
            await asyncio.sleep(0.05)
        events = await same_end(daemon, coordinator)
        epochs = [(e.from_, e.to, e.actor) for e in events if e.kind == "coordinator_epoch"]
        who = "spiffe://fleet.test/coordinator"
        assert epochs[-2][:2] == ("7", "0")
        assert epochs[-2][2].startswith("local:")
        assert epochs[-1] == ("0", "6", who)


async def test_a_coordinator_that_lost_events_is_told_them_again(
    parts: tuple[Path, Path],
) -> None:
    """It was restored, and its epoch raised for it, as it should be."""
    program, source = parts
    async with world(source, **settings(program)) as (daemon, coordinator):
        await deploy(daemon, coordinator)
        await same_end(daemon, coordinator)
        coordinator.ledger._db.execute("DELETE FROM events WHERE sequence > 3")
        coordinator.ledger.set("epoch", 2)
        await same_end(daemon, coordinator)


async def test_one_that_never_acknowledges_is_not_told_the_same_for_ever(
    shared: tuple[Daemon, Coordinator],
) -> None:
    _, coordinator = shared
    coordinator.ledger.set("withhold", "yes")
    await asyncio.sleep(0.5)
    sent = coordinator.ledger.reports(HOST)
    await asyncio.sleep(2)
    coordinator.ledger.set("withhold", "")
    assert coordinator.ledger.reports(HOST) - sent < 8


async def test_wanted_tags_are_here_before_they_are_asked_for(
    shared: tuple[Daemon, Coordinator],
) -> None:
    daemon, coordinator = shared
    wanted = [{"repo": "hello", "tag": "v3"}, {"repo": "../x", "tag": "v1"}]
    manifests = daemon.state / "cache/manifests"
    before = {path.name for path in manifests.iterdir()}
    coordinator.ledger.set("wanted", json.dumps(wanted))
    await coordinator.until(lambda: {path.name for path in manifests.iterdir()} - before)
    await coordinator.until(lambda: "wanted release not fetched" in daemon.log_tail())


async def test_the_inventory_comes_whole_once_and_when_it_is_asked_for(
    shared: tuple[Daemon, Coordinator],
) -> None:
    _, coordinator = shared
    ledger = coordinator.ledger
    await coordinator.until(lambda: (ledger.inventory(HOST) or {"host": {}})["host"].get("vcpus"))
    ledger._db.execute("UPDATE hosts SET inventory = NULL")
    await asyncio.sleep(2.5)
    assert ledger.inventory(HOST) is None
    ledger.set("send_inventory", "yes")
    await coordinator.until(lambda: ledger.inventory(HOST))
    sent = ledger.reports(HOST)
    await asyncio.sleep(1.5)
    assert ledger.reports(HOST) - sent < 6  # however often it asks
    ledger.set("send_inventory", "")


async def test_a_stopped_coordinator_holds_nothing_up(
    shared: tuple[Daemon, Coordinator],
) -> None:
    """It accepts connections and says nothing: worse than being gone."""
    daemon, coordinator = shared
    assert coordinator.process is not None
    coordinator.process.send_signal(signal.SIGSTOP)
    begun = time.monotonic()
    assert (await daemon.update(tag="v2")).status == 202
    assert (await daemon.over())["status"] == "completed"
    print(f"updated in {time.monotonic() - begun:.2f} s beside a silent coordinator")
    coordinator.process.send_signal(signal.SIGCONT)
    await coordinator.ended(HOST, "v2")
    await same_end(daemon, coordinator)


async def test_an_expired_list_ends_the_session_too_until_there_is_a_new_one(
    shared: tuple[Daemon, Coordinator],
) -> None:
    """A connection that is kept is not verified again by itself."""
    daemon, coordinator = shared

    async def codes() -> set[str]:
        return {one["code"] for one in (await daemon.get("/status")).body["problems"]}

    coordinator.authority.publish_crl(days=2 / 86400)
    while not {"crl_expired", "coordinator_untrusted"} <= await codes():
        await asyncio.sleep(0.05)
    sent = coordinator.ledger.reports(HOST)
    await asyncio.sleep(1.2)
    assert coordinator.ledger.reports(HOST) == sent
    coordinator.authority.publish_crl()
    while await codes():
        await asyncio.sleep(0.05)
    assert coordinator.ledger.reports(HOST) > sent


async def test_every_rpc_is_there_for_a_coordinator(
    shared: tuple[Daemon, Coordinator],
) -> None:
    daemon, coordinator = shared

    async def call(method: str, path: str, sent: Any = None) -> tuple[int, Any]:
        answer = await coordinator.call(HOST, method, path, sent)
        return answer.status, answer.body

    for path in ("/healthz", "/readyz", "/status", "/metrics", "/openapi.json"):
        assert (await call("GET", path))[0] == 200, path
    enclave = (await call("GET", "/v1/enclaves"))[1]["enclaves"][0]["id"]
    for path in (
        *("/v1/capacity", "/v1/deployments", _HELLO, f"{_HELLO}/updates"),
        *(f"{_HELLO}/updates/current", "/v1/events", f"/v1/enclaves/{enclave}"),
        f"/v1/enclaves/{enclave}/boot-stages",
    ):
        assert (await call("GET", path))[0] == 200, path
    assert (await call("GET", f"/v1/enclaves/{enclave}/console"))[0] == 403
    assert (await call("POST", "/v1/plan", {"deployment": "hello"}))[0] == 200
    assert (await call("PUT", f"{_HELLO}/secrets", {"KEY": "value"}))[0] == 200
    for verb in ("drain", "undrain"):
        assert (await call("POST", f"/v1/host/{verb}"))[0] == 200
    staged = {"tag": "v2", "staging": True}
    assert (await call("POST", f"{_HELLO}/updates", staged))[0] == 202
    await daemon.step("accept")
    assert (await call("POST", f"{_HELLO}/updates/current/accept"))[0] == 202
    await coordinator.ended(HOST, "v2")
    assert (await call("POST", f"{_HELLO}/rollback", {"to": "v1"}))[0] == 202
    await coordinator.ended(HOST, "v1")
    assert (await call("POST", f"{_HELLO}/updates", {"tag": "slow"}))[0] == 202
    assert (await call("POST", f"{_HELLO}/updates/current/cancel"))[0] == 202
    await daemon.over()
    assert (await call("POST", f"{_HELLO}/updates/current/retry"))[0] == 202
    await coordinator.ended(HOST, "slow")
    assert (await call("POST", f"{_HELLO}/stop"))[0] == 202
    await daemon.until(lambda d: d is not None and not d["enclaves"])
    assert (await call("POST", f"{_HELLO}/start"))[0] == 202
    await daemon.over()
    assert (await call("DELETE", _HELLO))[0] == 202
    await coordinator.until(lambda: coordinator.said(HOST) is None)
    await same_end(daemon, coordinator)
