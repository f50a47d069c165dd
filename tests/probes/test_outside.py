"""Listeners asked as their clients ask: what an answer is worth, and when it is asked again."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from ipaddress import IPv4Network

import pytest

from agent.config import ProbesConfig
from agent.host.wake import Wake
from agent.model.addresses import HostAddresses
from agent.model.ids import DeploymentName, EnclaveId
from agent.model.resources import Listen
from agent.probes.outside import OutsideProber
from agent.probes.outside_link import free_pair
from agent.probes.outside_verdict import Attempt, Reach, after
from agent.probes.port import ListenerReach, OutsideListener, OutsideTarget, OutsideView
from simulator.manual_clock import ManualClock
from tests.fakes.tls_guest import TlsGuest, identity

NAME, OTHER = DeploymentName("hello"), DeploymentName("other")
HERE = HostAddresses(local=("127.0.0.0/8",))
QUICK = ProbesConfig(interval_s=0.02, timeout_s=30, failure_threshold=3)
AT = Listen(address="0.0.0.0", port=8443)
GOOD, BAD = Attempt(None, by_outside=True), Attempt("no answer within 5 s", by_outside=True)


@pytest.fixture
async def prober() -> AsyncIterator[OutsideProber]:
    async with asyncio.TaskGroup() as tasks:
        made = prober_of()
        task = tasks.create_task(made.run())
        yield made
        task.cancel()


def prober_of(**changes: object) -> OutsideProber:
    values: dict[str, object] = {"addresses": lambda: HERE, "relayed": True} | changes
    return OutsideProber(QUICK, ManualClock(), None, **values)


async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """As long as the client stays."""
    await reader.read()
    writer.close()


def listen_of(server: asyncio.Server) -> Listen:
    address, port = server.sockets[0].getsockname()
    return Listen(address=address, port=port)


def target(*listeners: OutsideListener, generation: int = 1, enclave: str = "a") -> OutsideTarget:
    return OutsideTarget(
        generation=generation, enclave=EnclaveId(enclave * 8), listeners=listeners
    )


async def until(
    prober: OutsideProber, wanted: Callable[[OutsideView], object], name: DeploymentName = NAME
) -> OutsideView:
    """By the bell alone."""
    while True:
        seen = prober.changed.count
        view = prober.view(name)
        if view is not None and wanted(view):
            return view
        assert await prober.changed.beyond(seen, 60) > seen, view


def known(view: OutsideView) -> bool:
    return not view.doubtful


def only(view: OutsideView) -> ListenerReach:
    (one,) = view.listeners
    return one


def test_one_success_is_enough_and_failures_are_believed_when_there_are_enough() -> None:
    clock, reach, told = ManualClock(), Reach(AT), []
    for attempt in (BAD, BAD, GOOD, BAD, BAD, BAD, BAD, GOOD):
        clock.advance(1)
        reach = after(reach, attempt, clock.now(), 3)
        told.append((reach.reached, reach.view.doubtful, reach.since and reach.since.boottime_s))
    began = ManualClock().now().boottime_s
    assert told == [
        (None, True, None),
        (None, True, None),
        (True, False, began + 3),
        (True, True, began + 3),
        (True, True, began + 3),
        (False, False, began + 6),
        (False, False, began + 6),
        (True, False, began + 8),
    ]


def test_what_cannot_be_told_changes_nothing_and_is_not_waited_for() -> None:
    now = ManualClock().now()
    assert Reach(AT).view.doubtful
    assert not after(Reach(AT), None, now, 3).view.doubtful
    fails = after(after(Reach(AT), GOOD, now, 3), BAD, now, 3)
    assert after(fails, None, now, 3).view.reached is True
    assert not after(fails, None, now, 3).view.doubtful


async def test_a_listener_that_speaks_tls_is_shaken_hands_with_and_told_apart_by_its_key(
    prober: OutsideProber,
) -> None:
    guest = TlsGuest(identity("one"))
    endpoint = await guest.start()
    listen = Listen(address=endpoint.address, port=endpoint.port)
    listener = OutsideListener(listen=listen, tls=True, server_name="api.example")
    key, another = identity("one").spki_sha256, identity("two").spki_sha256
    for generation, keys, reached in (
        (1, frozenset[str](), True),
        (2, frozenset({another, key}), True),
        (3, frozenset({another}), False),
    ):
        asked = OutsideListener(listen=listen, tls=True, server_name="api.example", keys=keys)
        prober.watch(NAME, target(asked, generation=generation))
        view = await until(prober, lambda v, g=generation: known(v) and v.generation == g)  # type: ignore[misc]
        assert only(view).reached is reached
    assert f"the TLS key sha256:{key}, which is not the enclave's" in str(only(view).problem)
    prober.watch(NAME, target(listener, generation=4))
    assert only(await until(prober, lambda v: known(v) and v.generation == 4)).reached
    await guest.stop()
    await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("tls", "answer", "problem"),
    [
        (True, b"220 mail.example ESMTP\r\n", "TLS failed: WRONG_VERSION_NUMBER"),
        (True, b"", "accepted, then closed"),
        (False, b"", "accepted, then closed"),
    ],
)
async def test_whoever_accepts_and_is_not_what_clients_want_does_not_pass(
    prober: OutsideProber, tls: bool, answer: bytes, problem: str
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if tls:
            await reader.read(1 << 16)
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        prober.watch(NAME, target(OutsideListener(listen=listen_of(server), tls=tls)))
        one = only(await until(prober, known))
        assert (one.reached, one.problem, one.by_outside) == (False, problem, False)


async def test_what_refuses_is_told_and_what_comes_up_again_is_found(
    prober: OutsideProber,
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    prober.watch(NAME, target(OutsideListener(listen=Listen(address="0.0.0.0", port=port))))
    one = only(await until(prober, known))
    assert (one.reached, one.problem) == (False, "not connected: Connection refused")
    async with await asyncio.start_server(accept, "127.0.0.1", port):
        assert only(await until(prober, lambda v: only(v).reached)).problem is None


async def test_another_decision_begins_afresh_and_remembers_what_clients_had(
    prober: OutsideProber,
) -> None:
    async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        listener = OutsideListener(listen=listen_of(server))
        prober.watch(NAME, target(listener))
        await until(prober, known)
        prober.watch(NAME, target(listener, generation=2))
        assert (view := prober.view(NAME)) is not None
        assert (view.doubtful, view.reached_before) == (True, frozenset())  # of the same enclave
        await until(prober, known)
        prober.watch(NAME, target(listener, generation=3, enclave="b"))
        assert (view := prober.view(NAME)) is not None
        assert (view.generation, view.reached_before) == (3, {listener.listen})
        prober.unwatch(NAME)
        assert prober.view(NAME) is None


async def test_where_others_are_cut_off_too_or_the_network_is_at_fault_the_host_is_suspect() -> (
    None
):
    faults: list[bool] = [False]
    prober = prober_of(network_at_fault=lambda: faults[-1])
    task = asyncio.create_task(prober.run())
    gone = OutsideListener(listen=Listen(address="127.0.0.1", port=1))
    async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        prober.watch(NAME, target(OutsideListener(listen=listen_of(server))))
        assert not (await until(prober, known)).host_suspect
        prober.watch(OTHER, target(gone))
        assert not (await until(prober, known, OTHER)).host_suspect
        assert (view := prober.view(NAME)) is not None
        assert view.host_suspect
        prober.unwatch(OTHER)
        faults.append(True)
        assert (view := prober.view(NAME)) is not None
        assert view.host_suspect
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_an_address_that_is_elsewhere_now_is_not_asked() -> None:
    prober = prober_of()
    task = asyncio.create_task(prober.run())
    prober.watch(NAME, target(OutsideListener(listen=Listen(address="192.0.2.9", port=8443))))
    one = only(await until(prober, known))
    assert (one.reached, one.problem) == (None, None)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_a_pair_of_addresses_is_free_of_all_that_the_host_knows() -> None:
    assert str(free_pair(())) == "172.31.255.252/30"
    assert str(free_pair([IPv4Network("172.31.255.253/32")])) == "172.31.255.248/30"
    assert str(free_pair([IPv4Network("172.16.0.0/12")])) == "10.255.255.252/30"
    everything = [IPv4Network(net) for net in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")]
    assert free_pair(everything) is None


async def test_a_change_of_packet_filters_has_all_asked_at_once_and_so_has_one_that_fails() -> (
    None
):
    """Otherwise the next round is seconds away: none of them is waited for here."""
    stirred = Wake()
    prober = prober_of(stirred=stirred)
    task = asyncio.create_task(prober.run())
    one = await asyncio.start_server(accept, "127.0.0.1", 0)
    other = await asyncio.start_server(accept, "127.0.0.1", 0)
    prober.watch(NAME, target(OutsideListener(listen=listen_of(one))))
    prober.watch(OTHER, target(OutsideListener(listen=listen_of(other))))
    await until(prober, known)
    await until(prober, known, OTHER)
    one.close()
    other.close()
    stirred.notify()
    for name in (NAME, OTHER):
        assert only(await until(prober, lambda v: only(v).reached is False, name)).problem
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize(("number", "interval_s"), [(1, 10), (2, 10), (4, 20), (30, 60)])
def test_the_more_listeners_there_are_the_less_often_each_is_asked(
    number: int, interval_s: float
) -> None:
    prober = prober_of()
    listeners = [OutsideListener(listen=Listen(address="0.0.0.0", port=p)) for p in (1, 2)]
    for index in range(number):
        prober.watch(DeploymentName(f"d{index}"), target(*listeners))
    assert prober._interval_s() == interval_s
