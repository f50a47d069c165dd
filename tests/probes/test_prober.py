"""The prober as the engine uses it, with guests on real sockets."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import socket
import subprocess
from collections.abc import AsyncIterator, Callable

import msgspec
import pytest

from agent.config import ProbesConfig
from agent.enclaves import monitor
from agent.host.process import identify
from agent.model.clock import Instant
from agent.model.enclave import Endpoint
from agent.model.ids import EnclaveId
from agent.probes.port import HealthView, ProbeTarget
from agent.probes.runner import Prober
from agent.probes.watch import QEMU_EXIT
from simulator.manual_clock import ManualClock
from tests.fakes.tls_guest import (
    BOOT,
    CONTAINERS,
    METRICS,
    TlsGuest,
    booted,
    container,
    cut,
    hang,
    identity,
    listed,
    reply,
    says,
    stage,
)

ENCLAVE = EnclaveId("aaaaaaaa")
QUICK = ProbesConfig(interval_s=0.02, timeout_s=30, success_threshold=2, failure_threshold=3)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def prober(clock: ManualClock) -> AsyncIterator[Prober]:
    prober = Prober(QUICK, clock)
    yield prober
    await prober.close()


@pytest.fixture
async def guest() -> AsyncIterator[TlsGuest]:
    guest = TlsGuest()
    yield guest
    await guest.stop()


def target(endpoint: Endpoint, launch_uuid: str = "u1", **changes: object) -> ProbeTarget:
    values: dict[str, object] = {
        "enclave": ENCLAVE,
        "launch_uuid": launch_uuid,
        "https": endpoint,
        "health_path": "/",
        "tcp": (),
        "container_names": ("web",),
    }
    return ProbeTarget(**{**values, **changes})


async def until(prober: Prober, wanted: Callable[[HealthView], object]) -> HealthView:
    """Wait, by the bell alone, until the view is as wanted."""
    while True:
        seen = prober.changed.count
        view = prober.view(ENCLAVE)
        if view is not None and wanted(view):
            return view
        assert await prober.changed.beyond(seen, 60) > seen, view


def healthy(view: HealthView) -> bool:
    return view.healthy is True


def unhealthy(view: HealthView) -> bool:
    return view.healthy is False


async def until_visits(guest: TlsGuest, more: int) -> None:
    """Wait until so many more connections were served, by polling the fake alone."""
    wanted = len(guest.visits) + more
    async with asyncio.timeout(60):
        while len(guest.visits) < wanted:
            await asyncio.sleep(0.01)


async def test_a_good_guest_becomes_healthy_and_all_that_it_says_is_published(
    prober: Prober, guest: TlsGuest
) -> None:
    prober.watch(target(await guest.start()))
    first = prober.view(ENCLAVE)
    assert first is not None
    assert (first.answered, first.healthy, first.launch_uuid) == (False, None, "u1")
    view = await until(prober, healthy)
    assert view.answered
    assert view.boot_complete
    assert view.boot_failed is None
    assert view.boot_stages is not None
    assert view.containers is not None
    assert view.metrics == {"cpu_util": 3}
    assert view.spki_sha256 == guest.identity.spki_sha256
    assert view.fault is None
    assert {(p.name, p.passing) for p in view.probes} == {
        ("boot-stages", 2),
        ("containers", 2),
        ("https /", 2),
        ("tls-key", 2),
    }


@pytest.mark.parametrize("first", [BOOT, CONTAINERS])
async def test_a_guest_without_an_answer_is_unreachable_whatever_it_is_asked_first(
    prober: Prober, guest: TlsGuest, first: str
) -> None:
    """A container that nobody could tell of is not called unhealthy."""
    guest.answers[first] = cut
    prober.watch(target(await guest.start()))
    view = await until(prober, unhealthy)
    assert view.fault is not None
    assert (view.fault.code, view.fault.probe) == (
        "unreachable",
        "boot-stages" if first == BOOT else "containers",
    )


async def test_a_guest_that_falls_silent_because_its_qemu_ends_failed_of_that(
    prober: Prober, guest: TlsGuest
) -> None:
    """By the code that the watch of the process gives, so that who saw it first is all one."""
    with subprocess.Popen(["sleep", "600"]) as vm:
        prober.watch(target(await guest.start(), process=identify(vm.pid)))
        await until(prober, healthy)
        guest.answers[CONTAINERS] = listed(container(status="restarting"))
        view = await until(prober, unhealthy)
        assert view.fault is not None
        assert view.fault.code == "container_unhealthy"  # while it runs
        vm.kill()
        os.waitid(os.P_PID, vm.pid, os.WEXITED | os.WNOWAIT)  # a zombie, so not gone yet
        await guest.stop()
        view = await until(prober, lambda view: view.fault and view.fault.code == "qemu_exit")
    assert view.fault is not None
    assert view.fault.probe is None
    assert view.fault.detail.startswith("QEMU is ending: ")
    assert monitor.QEMU_EXIT.replace("-", "_") == QEMU_EXIT


async def test_the_passes_that_make_the_verdict_count_into_the_dwell(
    prober: Prober, guest: TlsGuest, clock: ManualClock
) -> None:
    began = clock.now()
    rounds = itertools.count(1)  # not visits: there are several knocks at a guest that is slow

    async def once_then_later(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(reply(200, b""))
        if next(rounds) > 1:
            clock.advance(7)

    guest.answers["/"] = once_then_later
    prober.watch(target(await guest.start()))
    view = await until(prober, healthy)
    assert view.healthy_since == began
    assert clock.now().since(began) >= 7


async def test_a_guest_that_comes_up_late_is_found(prober: Prober, guest: TlsGuest) -> None:
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    prober.watch(target(Endpoint(address="127.0.0.1", port=port)))
    early = await until(prober, unhealthy)
    assert not early.answered
    assert early.fault is not None
    assert "refused" in early.fault.detail
    await guest.start(port)
    await until(prober, healthy)


async def test_connections_that_hang_do_not_hold_up_those_that_are_answered(
    clock: ManualClock, guest: TlsGuest
) -> None:
    """As QEMU's user-mode network, which accepts before the guest is there."""
    inner = await guest.start()
    hung = 0

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal hung
        hung += 1
        if hung <= 7:
            await reader.read(-1)
            writer.close()
            return
        onward_reader, onward_writer = await asyncio.open_connection(inner.address, inner.port)
        await asyncio.gather(_pump(reader, onward_writer), _pump(onward_reader, writer))

    server = await asyncio.start_server(forward, "127.0.0.1", 0)
    prober = Prober(msgspec.structs.replace(QUICK, timeout_s=1000), clock)
    async with server:
        address, port = server.sockets[0].getsockname()
        prober.watch(target(Endpoint(address=address, port=port)))
        await until(prober, healthy)
        await prober.close()
        server.close()
        await asyncio.sleep(0)
    assert hung >= 9


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


async def test_a_guest_that_turns_sick_is_unhealthy_with_its_last_answer_and_may_recover(
    prober: Prober, guest: TlsGuest, clock: ManualClock
) -> None:
    prober.watch(target(await guest.start()))
    before = await until(prober, healthy)
    clock.advance(100)
    guest.answers["/"] = says({"error": "out of tune"}, status=503)
    sick = await until(prober, unhealthy)
    assert sick.healthy_since is None
    assert sick.fault is not None
    assert sick.fault.probe == "https /"
    assert sick.fault.detail == '/: HTTP 503: {"error": "out of tune"}'
    clock.advance(100)
    guest.answers["/"] = says({})
    again = await until(prober, healthy)
    assert again.flaps == 1
    assert again.fault is None
    assert before.healthy_since is not None
    assert again.healthy_since == before.healthy_since.plus(200)


async def test_a_healthy_guest_is_asked_over_one_connection_for_five_rounds_then_over_another(
    prober: Prober, guest: TlsGuest
) -> None:
    prober.watch(target(await guest.start()))
    await until(prober, healthy)
    before = len(guest.visits)
    await until_visits(guest, 4)
    few, all_of_it = [CONTAINERS, "/"], [BOOT, CONTAINERS, METRICS, "/"]
    assert guest.visits[before + 1 : before + 3] == [[*all_of_it, *few * 4]] * 2


async def test_a_guest_that_is_not_well_is_looked_at_over_new_connections(
    prober: Prober, guest: TlsGuest
) -> None:
    prober.watch(target(await guest.start()))
    await until(prober, healthy)
    await until_visits(guest, 2)  # in the first rounds over this one
    guest.answers["/"] = reply(503, b"sick")
    await until(prober, lambda view: view.fault)
    before = len(guest.visits)
    await until_visits(guest, 4)
    assert [paths.count("/") for paths in guest.visits[before : before + 3]] == [1, 1, 1]


async def test_a_guest_that_closes_idle_connections_stays_healthy(
    prober: Prober, guest: TlsGuest
) -> None:
    async def answer_and_close(
        _reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        writer.write(says({}))
        await writer.drain()
        raise ConnectionResetError  # the fake closes, and has not said that it would

    guest.answers["/"] = answer_and_close
    prober.watch(target(await guest.start()))
    await until(prober, healthy)
    for _ in range(12):
        await until_visits(guest, 1)
        view = prober.view(ENCLAVE)
        assert view is not None
        assert (view.healthy, view.flaps, view.fault) == (True, 0, None)


async def test_what_a_guest_may_send_is_counted_by_the_round(
    prober: Prober, guest: TlsGuest
) -> None:
    guest.answers[CONTAINERS] = says(
        {"containers": [container()], "unavailable": "", "more": "x" * 65_000}
    )
    guest.answers[METRICS] = says({"cpu_util": 3, "more": "x" * 65_000})
    prober.watch(target(await guest.start()))
    await until(prober, healthy)
    await until_visits(guest, 3)
    ended = guest.visits[:-1]
    assert max(paths.count(CONTAINERS) for paths in ended) == 5  # 390 kB over that connection
    assert [paths.count(CONTAINERS) for paths in ended] == [paths.count("/") for paths in ended]


async def test_one_failed_round_is_told_but_is_no_verdict(prober: Prober, guest: TlsGuest) -> None:
    prober.watch(target(await guest.start()))
    before = await until(prober, healthy)
    guest.answers["/"] = _after_one_failure(guest, says({"ok": 1}))
    faulty = await until(prober, lambda view: view.fault)
    assert faulty.healthy is True
    after = await until(prober, lambda view: view.fault is None)
    assert after.healthy is True
    assert after.flaps == 0
    assert after.healthy_since == before.healthy_since


def _after_one_failure(guest: TlsGuest, good: bytes) -> object:
    async def script(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(reply(500, b"once"))
        guest.answers["/"] = good

    return script


async def test_a_guest_with_an_exited_container_never_becomes_healthy(
    prober: Prober, guest: TlsGuest
) -> None:
    guest.answers[CONTAINERS] = listed(container(), container("db", status="exited", exit_code=1))
    prober.watch(target(await guest.start(), container_names=("web", "db")))
    view = await until(prober, unhealthy)
    assert view.fault is not None
    assert view.fault.code == "container_unhealthy"
    assert "container db is exited with code 1" in view.fault.detail
    await until_visits(guest, 5)
    still = prober.view(ENCLAVE)
    assert still is not None
    assert still.healthy is False


async def test_a_failed_boot_stage_is_published(prober: Prober, guest: TlsGuest) -> None:
    guest.answers[BOOT] = booted(stage("firewall", "failed", detail="no rules"))
    prober.watch(target(await guest.start()))
    view = await until(prober, lambda view: view.boot_failed)
    assert view.boot_failed == "firewall: no rules"
    assert not view.boot_complete
    assert view.healthy is False


async def test_a_boot_under_way_is_followed_to_its_end(prober: Prober, guest: TlsGuest) -> None:
    guest.answers[BOOT] = booted(stage("models", "pending"), completed=None)
    prober.watch(target(await guest.start()))
    view = await until(prober, lambda view: view.answered)
    assert not view.boot_complete
    guest.answers[BOOT] = booted()
    await until(prober, lambda view: view.boot_complete and view.healthy)


async def test_another_key_than_the_bound_one_is_told_at_once_and_borne_as_any_failure(
    prober: Prober, guest: TlsGuest
) -> None:
    endpoint = await guest.start()
    prober.watch(target(endpoint, bound_key=guest.identity.spki_sha256))
    await until(prober, healthy)
    await guest.stop()
    impostor = TlsGuest(identity("impostor"))
    await impostor.start(endpoint.port)
    view = await until(prober, lambda view: view.fault and view.fault.code == "key_changed")
    assert view.spki_sha256 == impostor.identity.spki_sha256
    view = await until(prober, unhealthy)
    assert view.another_key
    assert view.bound_spki_sha256 == guest.identity.spki_sha256
    await impostor.stop()


async def test_a_key_of_the_moment_before_any_was_bound_is_no_failure(
    prober: Prober, guest: TlsGuest
) -> None:
    """As the public guest: it answers early, says 503, and then takes its own key."""
    early = TlsGuest(identity("of the moment"))
    early.answers = {path: reply(503, b"waiting") for path in guest.answers}
    early.answers[BOOT] = booted(stage("certificate", "pending"), completed=None)
    endpoint = await early.start()
    prober.watch(target(endpoint))
    await until(prober, lambda view: view.stage == "certificate")
    await early.stop()
    await guest.start(endpoint.port)
    view = await until(prober, healthy)
    assert view.spki_sha256 == guest.identity.spki_sha256
    assert view.bound_spki_sha256 is None
    assert not view.another_key


@pytest.mark.parametrize(
    "shown",
    [
        pytest.param([True], id="its first connection"),
        pytest.param([True, True], id="two restarts"),
        pytest.param([False, True], id="one restart when it had its key"),
        pytest.param([True, False, True], id="both"),
    ],
)
@pytest.mark.parametrize("passes", [1, 2])
async def test_a_key_of_the_moment_is_not_bound_by_a_round_that_passed_wholly_over_it(
    clock: ManualClock, guest: TlsGuest, shown: list[bool], passes: int
) -> None:
    """A slow guest: its server took its own key while the connection of the round was open."""
    guest.moments = [
        identity(f"of the moment {turn}") if of_the_moment else guest.identity
        for turn, of_the_moment in enumerate(shown)
    ]
    endpoint = await guest.start()
    prober = Prober(msgspec.structs.replace(QUICK, success_threshold=passes), clock)
    prober.watch(target(endpoint, binds_itself=True))
    try:
        view = await until(prober, lambda view: view.bound_spki_sha256)
        assert view.bound_spki_sha256 == guest.identity.spki_sha256
        assert guest.moments == []
        await until_visits(guest, 2)
        view = await until(prober, healthy)
        assert (view.fault, view.another_key, view.flaps) == (None, False, 0)
    finally:
        await prober.close()


async def test_where_nothing_is_claimed_rounds_that_pass_wholly_bind_their_key(
    prober: Prober, guest: TlsGuest
) -> None:
    early = TlsGuest(identity("of the moment"))
    early.answers = {path: reply(503, b"waiting") for path in guest.answers}
    endpoint = await early.start()
    prober.watch(target(endpoint, binds_itself=True))
    early_view = await until(prober, lambda view: view.answered)
    assert early_view.bound_spki_sha256 is None
    await early.stop()
    await guest.start(endpoint.port)
    view = await until(prober, lambda view: view.bound_spki_sha256)
    assert view.bound_spki_sha256 == guest.identity.spki_sha256
    await until(prober, healthy)
    await guest.stop()
    await early.start(endpoint.port)
    early.answers = guest.answers
    view = await until(prober, unhealthy)
    assert view.another_key
    await early.stop()


async def test_a_kept_connection_does_not_hide_that_new_ones_are_shown_another_key(
    prober: Prober, guest: TlsGuest
) -> None:
    """The old server goes on with the connections that it has; another takes the new ones."""
    endpoint = await guest.start()
    prober.watch(target(endpoint, bound_key=guest.identity.spki_sha256))
    await until(prober, healthy)
    guest.stop_listening()
    impostor = TlsGuest(identity("impostor"))
    await impostor.start(endpoint.port)
    view = await until(prober, unhealthy)
    assert view.another_key
    await impostor.stop()


async def test_nothing_is_taken_from_what_a_stranger_tells_of_the_guest(
    prober: Prober, guest: TlsGuest
) -> None:
    endpoint = await guest.start()
    prober.watch(target(endpoint, bound_key=guest.identity.spki_sha256))
    known = await until(prober, healthy)
    await guest.stop()
    impostor = TlsGuest(identity("impostor"))
    impostor.answers[METRICS] = says({"cpu_util": 99})
    impostor.answers[CONTAINERS] = listed(container(), container("another"))
    await impostor.start(endpoint.port)
    view = await until(prober, unhealthy)
    assert (view.metrics, view.containers) == (known.metrics, known.containers)
    await impostor.stop()


async def test_a_key_that_is_bound_while_it_is_shown_passes_from_then_on(
    prober: Prober, guest: TlsGuest
) -> None:
    endpoint = await guest.start()
    prober.watch(target(endpoint, bound_key="11" * 32))
    await until(prober, lambda view: view.another_key)
    prober.watch(target(endpoint, bound_key=guest.identity.spki_sha256))
    view = await until(prober, healthy)
    assert not view.another_key


async def test_a_guest_that_refuses_after_it_answered_has_shut_its_door(
    prober: Prober, guest: TlsGuest
) -> None:
    guest.answers[BOOT] = booted(
        stage("config"), stage("identity"), stage("cpu-attestation", "pending"), completed=None
    )
    endpoint = await guest.start()
    prober.watch(target(endpoint))
    view = await until(prober, lambda view: view.answered)
    assert view.shut_since is None
    await guest.stop()
    view = await until(prober, lambda view: view.shut_since)
    assert (view.stage_before, view.stage) == ("identity", "cpu-attestation")
    again = TlsGuest()
    await again.start(endpoint.port)
    await until(prober, lambda view: view.shut_since is None)
    await again.stop()


async def test_a_guest_whose_server_accepts_and_closes_at_once_has_shut_its_door(
    prober: Prober, guest: TlsGuest
) -> None:
    """As QEMU's user-mode network does on behalf of a guest that refuses."""
    endpoint = await guest.start()
    prober.watch(target(endpoint))
    await until(prober, lambda view: view.answered)
    await guest.stop()
    server = await asyncio.start_server(
        lambda _, w: w.transport.abort(), "127.0.0.1", endpoint.port
    )
    await until(prober, lambda view: view.shut_since)
    server.close()


async def test_a_guest_that_is_silent_or_fails_in_its_handshake_has_not_shut_its_door(
    prober: Prober, guest: TlsGuest
) -> None:
    """It listens: who says nothing to it is not turned away."""

    async def fail(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(64)
        writer.transport.abort()

    endpoint = await guest.start()
    prober.watch(target(endpoint))
    await until(prober, healthy)
    await guest.stop()
    server = await asyncio.start_server(fail, "127.0.0.1", endpoint.port)
    view = await until(prober, unhealthy)
    assert view.shut_since is None
    server.close()


async def test_each_newly_finished_substage_is_progress(
    prober: Prober, guest: TlsGuest, clock: ManualClock
) -> None:
    def containers(*phases: str) -> bytes:
        done = [stage(name) for name in phases]
        waiting = stage("web", "pending", stages=[*done, stage("healthy", "pending")])
        return booted(stage("containers", "pending", stages=[waiting]), completed=None)

    guest.answers[BOOT] = containers()
    prober.watch(target(await guest.start()))
    view = await until(prober, lambda view: view.stage == "containers")
    assert view.progressed_at is None
    clock.advance(100)
    guest.answers[BOOT] = containers("pull")
    first = await until(prober, lambda view: view.progressed_at)
    clock.advance(100)
    guest.answers[BOOT] = containers("pull", "start")
    second = await until(prober, lambda view: view.progressed_at != first.progressed_at)
    assert second.progressed_at is not None
    assert second.progressed_at.since(first.progressed_at) == 100
    assert second.stage_since == view.stage_since


async def test_a_new_launch_starts_afresh_and_the_same_launch_goes_on(
    prober: Prober, guest: TlsGuest
) -> None:
    endpoint = await guest.start()
    prober.watch(target(endpoint))
    known = await until(prober, healthy)
    prober.watch(target(endpoint))
    assert prober.view(ENCLAVE) == known
    prober.watch(target(endpoint, launch_uuid="u2"))
    fresh = prober.view(ENCLAVE)
    assert fresh is not None
    assert (fresh.launch_uuid, fresh.healthy, fresh.spki_sha256) == ("u2", None, None)
    assert (await until(prober, healthy)).launch_uuid == "u2"


async def test_a_changed_target_of_the_same_launch_is_asked_from_the_next_round_on(
    prober: Prober, guest: TlsGuest
) -> None:
    endpoint = await guest.start()
    guest.answers["/health"] = reply(404, b"")
    prober.watch(target(endpoint))
    await until(prober, healthy)
    prober.watch(target(endpoint, health_path="/health"))
    view = await until(prober, unhealthy)
    assert view.fault is not None
    assert view.fault.probe == "https /health"


async def test_an_unwatched_enclave_has_no_view_and_is_asked_no_more(
    prober: Prober, guest: TlsGuest
) -> None:
    guest.answers["/"] = hang
    prober.watch(target(await guest.start()))
    await until_visits(guest, 1)
    prober.unwatch(ENCLAVE)
    prober.unwatch(ENCLAVE)
    assert prober.view(ENCLAVE) is None
    await prober.close()
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("probe-")]


async def test_a_steady_enclave_does_not_ring_the_bell(prober: Prober, guest: TlsGuest) -> None:
    prober.watch(target(await guest.start()))
    await until(prober, healthy)
    rung = prober.changed.count
    await until_visits(guest, 8)
    assert prober.changed.count == rung


class _ClockThatBreaksOnce(ManualClock):
    """The first look at it is an error, as a bug would be."""

    broken = False

    def now(self) -> Instant:
        if not self.broken:
            self.broken = True
            raise RuntimeError("no time")
        return super().now()


async def test_a_prober_that_breaks_is_told_and_begun_again(
    guest: TlsGuest, caplog: pytest.LogCaptureFixture
) -> None:
    prober = Prober(QUICK, _ClockThatBreaksOnce())
    prober.watch(target(await guest.start()))
    with caplog.at_level(logging.ERROR):
        await until(prober, healthy)
    assert [record.message for record in caplog.records] == ["prober broke"]
    await prober.close()


async def test_news_are_told_once_and_of_whom_they_are(prober: Prober, guest: TlsGuest) -> None:
    other = EnclaveId("other222")
    endpoint = await guest.start()
    prober.watch(target(endpoint))
    assert prober.changed.take() == {ENCLAVE}
    await until(prober, healthy)
    assert prober.changed.take() == {ENCLAVE}
    prober.unwatch(ENCLAVE)
    prober.watch(target(endpoint, enclave=other))
    assert prober.changed.take() == {ENCLAVE, other}
    prober.unwatch(other)
    assert prober.changed.take() == {other}
    assert prober.changed.take() == frozenset()


async def test_begun_anew_it_knows_nothing_but_that_the_guest_had_booted_and_its_key(
    prober: Prober, guest: TlsGuest, clock: ManualClock
) -> None:
    prober.watch(target(await guest.start()))
    before = await until(prober, healthy)
    clock.advance(3600)
    prober.begin_anew()
    view = prober.view(ENCLAVE)
    assert view is not None
    assert (view.healthy, view.healthy_since, view.falters) == (None, None, False)
    assert (view.boot_complete, view.spki_sha256) == (True, before.spki_sha256)
    again = await until(prober, healthy)
    assert again.healthy_since is not None
    assert before.healthy_since is not None
    assert again.healthy_since.since(before.healthy_since) == 3600
