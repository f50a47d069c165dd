"""Every listener alike: what a stranger's connection may cost, and who is served meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.api.listeners import local_listener, rpc_socket, tcp_listener
from agent.api.roles import Role
from agent.api.server import ApiServer, Rpc
from agent.api.surface import Surface
from agent.door.accept import accept_for_ever, descriptors_left
from agent.door.body import read_bounded
from agent.door.connection import DoorConnection, Room
from agent.door.crowd import EvictingQueue
from agent.door.held import Held
from agent.door.limits import Limits, peer_of_address
from agent.door.tls import Overhead
from agent.door.turns import Turns
from agent.host.paced_log import PacedLog
from agent.pki.keeper import FleetCertificates
from bench import tls_records
from tests.api_bodies import DEPLOY
from tests.fakes.api_server import port_of, surface_of
from tests.fakes.engine import FakeEngine
from tests.fakes.fleet import HOST, RESET, NotedProblems, Pki

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
_GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
_LAST = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
KINDS = ("status", "local", "rpc")
SOON_S = 60


@dataclass
class House:
    """The API on all of its listeners, with one set of limits."""

    surface: Surface
    room: Room
    pki: Pki
    path: Path
    ports: dict[str, int]
    opened: list[asyncio.StreamWriter] = field(default_factory=list)

    async def open(self, kind: str) -> Streams:
        if kind == "local":
            streams = await asyncio.open_unix_connection(str(self.path))
        else:
            tls = self.pki.context(self.pki.observer()) if kind == "rpc" else None
            streams = await asyncio.open_connection("127.0.0.1", self.ports[kind], ssl=tls)
        self.opened.append(streams[1])
        return streams

    async def healthy(self, kind: str) -> bool:
        reader, writer = await self.open(kind)
        writer.write(_LAST)
        async with asyncio.timeout(SOON_S):
            return b" 200 " in (await reader.read())[:20]

    async def until(self, ready: Callable[[], bool]) -> None:
        async with asyncio.timeout(SOON_S):
            while not ready():
                await asyncio.sleep(0.01)


async def ended(reader: asyncio.StreamReader) -> bytes:
    """What was sent until the other side ended it."""
    got = b""
    async with asyncio.timeout(SOON_S):
        with contextlib.suppress(*RESET):
            while piece := await reader.read(1 << 16):
                got += piece
    return got


@pytest.fixture
async def house(tmp_path: Path, short_dir: Path) -> AsyncIterator[Callable[..., Awaitable[House]]]:
    running: list[tuple[ApiServer, House]] = []

    async def start(**limits: float) -> House:
        pki = Pki(tmp_path / "pki")
        trust = FleetCertificates(pki.tls(), HOST, NotedProblems())
        await trust.look()
        local, status = (
            local_listener(short_dir / "a.sock"),
            tcp_listener("127.0.0.1", 0, Role.STATUS),
        )
        rpc, surface, room = rpc_socket("127.0.0.1", 0), surface_of(FakeEngine()), Room()
        room.limits = Limits(**limits)  # type: ignore[arg-type]
        server = ApiServer(surface, [local, status], Rpc(rpc, trust), room)
        await server.start()
        await asyncio.sleep(0)
        ports = {"status": port_of(status), "rpc": rpc.getsockname()[1]}
        made = House(surface, room, pki, short_dir / "a.sock", ports)
        running.append((server, made))
        return made

    yield start
    for server, made in running:
        for writer in made.opened:
            writer.transport.abort()
        await server.close()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\nX-Slow: a", _GET + b"GET "])
async def test_a_head_that_does_not_come_ends_the_connection(
    house, kind: str, said: bytes
) -> None:
    there = await house(head_s=0.2, idle_s=0.4)
    reader, writer = await there.open(kind)
    writer.write(said)
    assert (await ended(reader)).count(b"HTTP/1.1 ") == said.count(b"\r\n\r\n")


@pytest.mark.parametrize("kind", KINDS)
async def test_a_head_has_64_kib_and_no_more(house, kind: str) -> None:
    there = await house()
    for fields, status in ((8, b" 200 "), (9, b" 431 ")):
        reader, writer = await there.open(kind)
        lines = b"".join(b"X-%d: %s\r\n" % (n, b"a" * 7900) for n in range(fields))
        writer.write(_LAST[:-2] + lines + b"\r\n")
        answer = await ended(reader)
        assert status in answer[:20]
    assert b"head_too_large" in answer


@pytest.mark.parametrize("kind", ["status", "local"])
async def test_a_newcomer_is_let_in_for_the_oldest_that_is_not_served(house, kind: str) -> None:
    there = await house(per_peer=3)
    following = await there.open(kind)
    if kind == "local":
        following[1].write(b"GET /v1/events?follow=1 HTTP/1.1\r\nHost: a\r\n\r\n")
        await following[0].readuntil(b": following")
    idle = [await there.open(kind) for _ in range(3)]
    assert await there.healthy(kind)
    assert await ended(idle[0][0]) == b""
    if kind == "local":
        assert not following[0].at_eof()


@pytest.mark.parametrize("kind", KINDS)
async def test_pipelined_requests_are_parsed_as_they_are_served_and_all_answered(
    house, kind: str
) -> None:
    there = await house()
    reader, writer = await there.open(kind)
    asked = 400
    head = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\nX: %s\r\n\r\n" % (b"a" * 4000)
    writer.write(head * (asked - 1) + head.replace(b"Host", b"Connection: close\r\nHost"))
    await there.until(lambda: there.room.held.total > 0)
    count = 0
    async with asyncio.timeout(SOON_S):
        while piece := await reader.read(1 << 20):
            count += piece.count(b"HTTP/1.1 200 ")
            assert there.room.held.total < 1 << 20
    assert count == asked


async def test_bodies_that_come_late_do_not_stop_what_is_asked_after_them(house) -> None:
    there = await house(head_s=SOON_S)
    reader, writer = await there.open("local")
    head = b"POST /v1/plan HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n"
    head += b"Content-Type: application/json\r\n"
    async with asyncio.timeout(SOON_S):
        for _ in range(4):
            writer.write(head + b"Expect: 100-continue\r\n\r\n")
            await reader.readuntil(b" 100 Continue")  # the head is taken, its body not there
            writer.write(b"{}")
            await reader.readuntil(b"}")
        writer.write(_GET * 7 + _LAST)
        assert (await ended(reader)).count(b" 200 ") == 8


@pytest.mark.parametrize("kind", KINDS)
async def test_an_answer_that_nobody_takes_ends_the_connection(
    house, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reasons: list[str] = []
    drop = DoorConnection.drop

    def told(self: DoorConnection, reason: str) -> None:
        reasons.append(reason)
        drop(self, reason)

    monkeypatch.setattr(DoorConnection, "drop", told)
    there = await house(answer_s=0.2)
    reader, writer = await there.open(kind)
    writer.transport.pause_reading()
    writer.write(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 400)
    await there.until(lambda: bool(reasons))
    assert reasons == ["its answer is not taken"]
    await there.until(lambda: there.room.held.total == 0)
    writer.transport.resume_reading()
    await ended(reader)


async def test_what_many_hold_is_bounded_and_whoever_holds_little_is_served(house) -> None:
    there = await house(per_peer=64)
    there.room.held._limit = 1 << 20
    lines = b"".join(b"X-%d: %s\r\n" % (n, b"a" * 7900) for n in range(7))
    flood = [await there.open("status") for _ in range(40)]
    for _, writer in flood:
        writer.write(b"GET / HTTP/1.1\r\n" + lines)
    await there.until(lambda: any(one.at_eof() or one.exception() for one, _ in flood))
    assert there.room.held.total <= 1 << 20
    assert await there.healthy("status")
    path = "/v1/deployments/web"
    connector = aiohttp.UnixConnector(str(there.path))
    async with aiohttp.ClientSession(connector=connector) as session:
        body = DEPLOY | {"variables": {"A": "a" * 30_000}}
        async with session.put(f"http://agent{path}", json=body) as answer:
            assert answer.status == 202


async def test_of_a_body_whose_reader_failed_nothing_stays_in_memory() -> None:
    """What is raised keeps the frames that it passed, until somebody collects the circle."""
    pieces: list[bytes] = []

    class Content:
        async def readany(self) -> bytes:
            if pieces:
                raise ConnectionResetError
            pieces.append(bytes(1 << 16))
            return pieces[0]

    request = SimpleNamespace(
        content_length=None, protocol=None, transport=object(), content=Content()
    )
    raised = None
    try:
        await read_bounded(request, 1 << 20, SOON_S)
    except ConnectionResetError as error:
        raised = error
    assert raised is not None
    count = sys.getrefcount(pieces[0])
    assert count == 2  # the list's, and the call's own


async def test_a_body_whose_sender_goes_is_let_go_and_is_no_fault_of_the_agent(
    house, caplog
) -> None:
    there = await house()
    head = b"POST /v1/plan HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n"
    for _ in range(20):
        _, writer = await there.open("local")
        writer.write(head + b"Content-Type: application/json\r\n\r\n" + b" " * 500_000)
        await there.until(lambda: there.room.held.total > 400_000)
        writer.transport.abort()
        await there.until(lambda: there.room.held.total == 0)
    counted = there.surface.counters.requests
    await there.until(lambda: counted["POST", "/v1/plan", 400] == 20)
    assert not [one for one in caplog.records if one.levelno >= logging.WARNING]


async def test_key_updates_without_end_end_the_connection(house) -> None:
    """OpenSSL takes any number of them, and HTTP sees none."""
    there = await house()
    context = there.pki.context(there.pki.observer())
    reader, writer, records = await tls_records.connect(context, "127.0.0.1", there.ports["rpc"])
    there.opened.append(writer)
    for _ in range(500):
        writer.write(records.key_update(answer=False))
    writer.write(records.record(_GET))
    async with asyncio.timeout(SOON_S):
        assert await reader.read(1)  # a few are of no account
    assert there.surface.counters.refused == {}
    with contextlib.suppress(*RESET):
        for _ in range(3000):
            writer.write(records.key_update(answer=True))
        await writer.drain()
    await ended(reader)
    assert there.surface.counters.refused == {"tls_flood": 1}
    assert await there.healthy("rpc")


async def test_below_the_reserve_nothing_is_accepted_and_it_is_told_once_a_second(
    caplog,
) -> None:
    left, taken = False, asyncio.Event()
    with socket.socket() as listening, socket.socket() as client:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        listening.setblocking(False)
        client.connect(listening.getsockname())
        looks = 0

        def looked() -> bool:
            nonlocal looks
            looks += 1
            return left

        def take(sock: socket.socket, _: object) -> None:
            sock.close()
            taken.set()

        task = asyncio.create_task(accept_for_ever(listening, take, looked))
        while looks < 4:
            await asyncio.sleep(0.01)
        assert not taken.is_set()
        left = True
        async with asyncio.timeout(SOON_S):
            await taken.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert len([one for one in caplog.records if "descriptors" in one.message]) == 1


def test_the_reserve_is_counted_by_the_lowest_free_descriptor() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 40, hard))
        assert descriptors_left(reserve=5)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 4, hard))
        assert not descriptors_left(reserve=5)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
        assert not descriptors_left(reserve=0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9), st.integers(0, 60))))
def test_whoever_holds_most_goes_and_the_rest_is_within_the_limit(
    steps: list[tuple[str, int, int]],
) -> None:
    held: Held[tuple[str, int]] = Held(100)
    model: dict[tuple[str, int], int] = {}
    for peer, number, size in steps:
        member = (peer, number)
        model[member] = size
        for out in held.hold(peer, member, size):
            totals = {p: sum(n for m, n in model.items() if m[0] == p) for p in "abc"}
            assert totals[out[0]] == max(totals.values())
            assert model[out] == max(n for m, n in model.items() if m[0] == out[0])
            del model[out]
        assert held.total == sum(model.values())
        assert held.total <= 100


def test_who_is_served_leaves_last() -> None:
    queue: EvictingQueue[int] = EvictingQueue(10, 2)
    queue.enter("a", 1)
    queue.enter("a", 2)
    queue.serving(1, now=True)
    assert queue.enter("a", 3) == 2
    queue.serving(3, now=True)
    assert queue.enter("a", 4) == 4
    queue.serving(1, now=False)
    assert queue.enter("a", 5) == 1


def test_what_comes_below_tls_is_earned_by_what_comes_out_of_it() -> None:
    of_http = Overhead(1000)
    assert all(of_http.spend(100 + 22, 100) for _ in range(1000))
    tiny = Overhead(1000)
    assert [tiny.spend(23, 1) for _ in range(50)].count(True) == 1000 // 21
    after_much = Overhead(1000)
    assert after_much.spend(1 << 20, 1 << 20)
    assert not after_much.spend(1001, 0)


@pytest.mark.parametrize(
    ("address", "peer"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("", ""),
    ],
)
def test_one_peer_is_one_site(address: str, peer: str) -> None:
    assert peer_of_address(address) == peer


def test_a_kind_of_line_is_written_once_a_second_with_the_number_left_out(caplog) -> None:
    now = 0.0
    log = PacedLog(logging.getLogger("paced"), lambda: now)
    with caplog.at_level(logging.INFO):
        for number in range(5):
            log.info("gone: %s", number)
        log.warning("other %s", "kind")
        now = 1.0
        log.info("gone: %s", 9)
        now = 2.5
        log.info("gone: %s", 10)
    assert [one.message for one in caplog.records] == [
        "gone: 0",
        "other kind",
        "gone: 9 (and 4 more like it)",
        "gone: 10",
    ]


async def test_who_asks_many_times_at_once_has_a_turn_a_round_and_who_goes_takes_none() -> None:
    turns, served, rounds = Turns(a_round=2), [], 0

    async def ask(number: int) -> None:
        await turns.next()
        served.append((number, rounds))

    gone = turns.next()
    gone.cancel()
    asking = [asyncio.create_task(ask(number)) for number in range(6)]
    while not all(task.done() for task in asking):
        rounds += 1
        await asyncio.sleep(0)
    assert [number for number, _ in served] == list(range(6))
    a_round = Counter(at for _, at in served)
    assert max(a_round.values()) <= 2
    await turns.next()  # it grants again after it had nobody to grant to
