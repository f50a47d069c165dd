"""The TLS listener: who gets in, who gets no byte, and who is thrown out again."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from agent.api.listeners import rpc_socket
from agent.api.server import ApiServer, Rpc
from agent.api.streams import Streams
from agent.api.surface import Surface
from agent.pki.keeper import FleetCertificates
from agent.pki.names import coordinator_uri, host_uri, observer_uri
from tests.api_bodies import (
    DEPLOY,
    LEADING_ELSEWHERE,
    READ_IN_TWO_WAYS,
    elsewhere,
    smuggling,
)
from tests.fakes.api_server import surface_of
from tests.fakes.engine import FakeEngine
from tests.fakes.fleet import DOMAIN, HOST, Member, NotedProblems, Pki, bytes_for, first_read

EPOCH = {"Coordinator-Epoch": "1"}


@dataclass
class Served:
    """`ask` is a request as a member of the fleet, on a connection of its own."""

    engine: FakeEngine
    surface: Surface
    trust: FleetCertificates
    pki: Pki
    problems: NotedProblems
    port: int

    @property
    def refused(self) -> Counter[str]:
        return self.surface.counters.refused

    @contextlib.asynccontextmanager
    async def session(self, member: Member) -> AsyncIterator[aiohttp.ClientSession]:
        connector = aiohttp.TCPConnector(ssl=self.pki.context(member), force_close=False)
        base = f"https://127.0.0.1:{self.port}"
        async with aiohttp.ClientSession(base, connector=connector) as session:
            yield session

    async def ask(
        self, member: Member, method: str = "GET", path: str = "/v1/deployments", **more: Any
    ) -> tuple[int, Any]:
        async with (
            self.session(member) as session,
            session.request(method, path, **more) as response,
        ):
            return response.status, await response.json(content_type=None)

    async def bytes_for(self, context: ssl.SSLContext | None, data: bytes) -> bytes:
        """What a peer is sent, whatever it says; b'' if the connection just ends."""
        return await bytes_for(context, data, self.port)

    async def until_refused(self, reason: str) -> None:
        async with asyncio.timeout(30):
            while not self.refused[reason]:
                await asyncio.sleep(0.01)


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    engine, problems = FakeEngine(), NotedProblems()
    pki = Pki(tmp_path / "pki")
    trust = FleetCertificates(pki.tls(), HOST, problems)
    await first_read(trust)
    sock = rpc_socket("127.0.0.1", 0)
    surface = surface_of(engine)
    server = ApiServer(surface, [], Rpc(sock, trust))
    await server.start()
    keeping = asyncio.create_task(trust.keep())
    await asyncio.sleep(0)
    yield Served(engine, surface, trust, pki, problems, sock.getsockname()[1])
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)  # with the process that it may have
    await server.close()


async def read_to_its_end(stream: aiohttp.ClientResponse) -> None:
    """Until the other end closes it, one way or another."""
    async with asyncio.timeout(30):
        with contextlib.suppress(aiohttp.ClientError):
            while await stream.content.readline():
                pass
    stream.close()


_GET = b"GET /v1/deployments HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


async def test_a_coordinator_may_change_and_is_told_who_it_is(served: Served) -> None:
    path = "/v1/deployments/web"
    status, _ = await served.ask(
        served.pki.coordinator(), "PUT", path, json=DEPLOY, headers={"Coordinator-Epoch": "7"}
    )
    assert status == 202
    ((what, caller),) = served.engine.calls
    assert (what, caller.name, caller.epoch) == ("deploy", coordinator_uri(DOMAIN), 7)


async def test_an_observer_reads_and_changes_nothing(served: Served) -> None:
    observer = served.pki.observer()
    assert (await served.ask(observer))[0] == 200
    assert (await served.ask(observer, path="/status"))[0] == 200
    for method, path in (
        ("PUT", "/v1/deployments/web"),
        ("POST", "/v1/host/drain"),
        ("POST", "/v1/leases"),
        ("DELETE", "/v1/deployments/web"),
    ):
        status, body = await served.ask(observer, method, path, json=DEPLOY, headers=EPOCH)
        assert (status, body["code"]) == (403, "forbidden"), path
    assert served.engine.calls == []


async def test_what_is_of_the_host_alone_is_not_a_coordinators(served: Served) -> None:
    coordinator = served.pki.coordinator()
    reset = "/v1/host/coordinator-epoch/reset"
    accept = "/v1/deployments/web/accept-chip"
    for path in (reset, accept):
        assert (await served.ask(coordinator, "POST", path, headers=EPOCH))[0] == 403
    assert (await served.ask(coordinator, path="/v1/enclaves/aaaaaaaa/console"))[0] == 403


@pytest.mark.parametrize(
    ("peer", "reason"),
    [
        ("no certificate", "certificate"),
        ("foreign authority", "certificate"),
        ("expired", "certificate"),
        ("revoked", "certificate"),
        ("a host", "not_welcome"),
        ("another path", "not_welcome"),
        ("another trust domain", "not_welcome"),
        ("two names", "no_role"),
        ("a DNS name alone", "no_role"),
        ("no name", "no_role"),
    ],
)
async def test_whoever_is_nobody_gets_no_byte_of_http(
    served: Served, tmp_path: Path, peer: str, reason: str
) -> None:
    pki = served.pki
    good = coordinator_uri(DOMAIN)
    foreign = Pki(tmp_path / "foreign")
    member = {
        "no certificate": lambda: None,
        "foreign authority": foreign.coordinator,
        "expired": lambda: pki.coordinator(days=-0.1),
        "revoked": pki.coordinator,
        "a host": lambda: pki.host("other"),
        "another path": lambda: pki.member(f"{good}/replica"),
        "another trust domain": lambda: pki.member(coordinator_uri("other.test")),
        "two names": lambda: pki.member(good, more_uris=(observer_uri(DOMAIN),)),
        "a DNS name alone": lambda: pki.member(None, dns_names=("coordinator",)),
        "no name": lambda: pki.member(None),
    }[peer]()
    if peer == "revoked":
        assert member is not None
        pki.revoke(member)
        await served.trust.look()
    assert await served.bytes_for(pki.context(member), _GET) == b""
    await served.until_refused(reason)
    assert served.refused == {reason: 1}
    assert (await served.ask(pki.observer()))[0] == 200


async def test_plain_http_and_old_tls_are_dropped(served: Served) -> None:
    assert await served.bytes_for(None, _GET) == b""
    old = served.pki.context(served.pki.coordinator())
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    assert await served.bytes_for(old, _GET) == b""
    await served.until_refused("not_tls")
    await served.until_refused("tls")


async def test_a_session_is_never_resumed(served: Served) -> None:
    """A resumed one would skip the look at the certificate."""
    context = served.pki.context(served.pki.coordinator())
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port, ssl=context)
    writer.write(_GET)
    await reader.read()
    session = writer.get_extra_info("ssl_object").session
    assert session is None or not session.has_ticket
    writer.close()


async def test_revocation_ends_what_is_open(served: Served) -> None:
    victim, other = served.pki.coordinator(), served.pki.coordinator()
    async with served.session(victim) as gone, served.session(other) as stays:
        for session in (gone, stays):
            async with session.get("/v1/events?follow=1") as stream:
                await stream.content.readline()
            async with session.get("/status") as answer:
                assert answer.status == 200
        stream = await gone.get("/v1/events?follow=1")
        begun = time.monotonic()
        served.pki.revoke(victim)
        await read_to_its_end(stream)
        print(f"revocation took effect after {time.monotonic() - begun:.2f} s")
        with pytest.raises(aiohttp.ClientError):
            await gone.get("/status")
        async with stays.get("/status") as answer:
            assert answer.status == 200


async def test_an_expired_list_lets_nobody_in_and_throws_out_who_is_in(served: Served) -> None:
    async with served.session(served.pki.observer()) as session:
        async with session.get("/status") as answer:
            assert answer.status == 200
        stream = await session.get("/v1/events?follow=1")
        served.pki.authority.publish_crl(days=1.2 / 86400)
        await read_to_its_end(stream)
    assert await served.bytes_for(served.pki.context(served.pki.observer()), _GET) == b""
    await served.trust.look()
    assert served.problems.codes == {"trust/ending/crl": "crl_expired"}
    served.pki.authority.publish_crl()
    await served.trust.look()
    assert (await served.ask(served.pki.observer()))[0] == 200
    assert served.problems.codes == {}


async def test_another_authority_ends_the_peers_of_the_old_one(
    served: Served, tmp_path: Path
) -> None:
    old, new = served.pki, Pki(tmp_path / "new")
    peer, host = old.observer(), new.host()
    tls = served.trust.tls
    async with served.session(peer) as session:
        stream = await session.get("/v1/events?follow=1")
        await stream.content.readline()
        for path, by in ((tls.certificate, host.pem), (tls.key, host.key), (tls.ca, new.ca)):
            path.write_bytes(by.read_bytes())
        assert tls.crl is not None
        tls.crl.write_bytes(new.crl.read_bytes())
        await read_to_its_end(stream)
    served.pki = new
    assert (await served.ask(new.observer()))[0] == 200
    assert await served.bytes_for(new.context(peer), _GET) == b""


async def test_observers_leave_room_for_a_coordinator_that_follows(served: Served) -> None:
    served.surface.streams = Streams(limit=3, limit_of_one=2)
    path = "/v1/events?follow=1"
    async with contextlib.AsyncExitStack() as stack:
        observer = await stack.enter_async_context(served.session(served.pki.observer()))
        another = await stack.enter_async_context(served.session(served.pki.observer()))
        coordinator = await stack.enter_async_context(served.session(served.pki.coordinator()))
        asked = ((observer, 200), (another, 200), (another, 503), (coordinator, 200))
        for session, status in asked:
            stream = await stack.enter_async_context(session.get(path))
            assert stream.status == status
            if status == 200:
                await stream.content.readline()


async def test_a_new_certificate_is_shown_to_who_comes_next_and_nobody_is_closed(
    served: Served,
) -> None:
    async def shown() -> str:
        context = served.pki.context(served.pki.observer())
        _, writer = await asyncio.open_connection("127.0.0.1", served.port, ssl=context)
        serial = writer.get_extra_info("ssl_object").getpeercert()["serialNumber"]
        writer.close()
        return str(serial)

    before, tls, new = await shown(), served.trust.tls, served.pki.host()
    async with served.session(served.pki.observer()) as session:
        stream = await session.get("/v1/events?follow=1")
        await stream.content.readline()
        rung = served.trust.changed.count
        tls.key.write_bytes(new.key.read_bytes())  # for a moment they do not fit
        tls.certificate.write_bytes(new.pem.read_bytes())
        await served.trust.changed.beyond(rung, 20)
        assert await shown() != before
        async with session.get("/status") as answer:
            assert answer.status == 200
        assert not stream.content.at_eof()
        stream.close()


async def test_a_stale_epoch_changes_nothing_until_it_is_reset(served: Served) -> None:
    coordinator, path = served.pki.coordinator(), "/v1/host/drain"

    async def drain(epoch: str | None) -> tuple[int, Any]:
        headers = {} if epoch is None else {"Coordinator-Epoch": epoch}
        return await served.ask(coordinator, "POST", path, headers=headers)

    assert (await drain("5"))[0] == 200
    status, body = await drain("4")
    assert (status, body["code"]) == (409, "stale_epoch")
    assert "coordinator-epoch reset" in body["detail"]
    assert (await drain("5"))[0] == 200
    assert (await drain("6"))[0] == 200
    for wrong in (None, "x", "-1", "", "1" * 16):
        status, body = await drain(wrong)
        assert (status, body["field"]) == (400, "Coordinator-Epoch"), wrong
    assert [caller.epoch for _, caller in served.engine.calls] == [5, 5, 6]


async def test_a_replayed_key_gives_the_kept_answer_and_does_nothing(served: Served) -> None:
    coordinator = served.pki.coordinator()
    headers = EPOCH | {"Idempotency-Key": "k1"}
    path = "/v1/deployments/web"
    first = await served.ask(coordinator, "PUT", path, json=DEPLOY, headers=headers)
    again = await served.ask(coordinator, "PUT", path, json=DEPLOY, headers=headers)
    assert first == again
    other = await served.ask(
        coordinator, "PUT", path, json=DEPLOY | {"tag": "v9"}, headers=headers
    )
    assert (other[0], other[1]["code"]) == (422, "idempotency_key_reused")
    assert len(served.engine.calls) == 1


@pytest.mark.parametrize("name", LEADING_ELSEWHERE)
async def test_names_that_would_lead_elsewhere_lead_nowhere(served: Served, name: str) -> None:
    coordinator = served.pki.coordinator()
    got = await served.bytes_for(served.pki.context(coordinator), elsewhere(name))
    assert got.split()[1] in (b"404", b"400"), got
    assert served.engine.calls == []


@pytest.mark.parametrize("head", READ_IN_TWO_WAYS)
async def test_requests_that_can_be_read_in_two_ways_are_not_read(
    served: Served, head: str
) -> None:
    context = served.pki.context(served.pki.coordinator())
    got = await served.bytes_for(context, smuggling(head))
    assert got.startswith(b"HTTP/1.1 4") or got.startswith(b"HTTP/1.0 4"), got
    assert got.count(b"HTTP/1.") == 1
    assert served.engine.calls == []


async def test_a_body_of_100_mb_is_refused_at_its_announcement(served: Served) -> None:
    begun = time.monotonic()
    head = b"PUT /v1/deployments/web HTTP/1.1\r\nHost: a\r\nCoordinator-Epoch: 1\r\n"
    head += b"Content-Type: application/json\r\nContent-Length: 104857600\r\n\r\n"
    context = served.pki.context(served.pki.coordinator())
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port, ssl=context)
    writer.write(head)
    assert (await reader.readline()).split()[1] == b"413"
    print(f"refused after {time.monotonic() - begun:.3f} s")
    writer.close()


async def test_a_peer_that_never_ends_its_head_is_dropped(served: Served) -> None:
    context = served.pki.context(served.pki.observer())
    got = await served.bytes_for(
        context, b"GET /status HTTP/1.1\r\nA: b\r\n" + b"C: d\r\n" * 2**18
    )
    assert b"200" not in got[:20]


async def test_a_flood_of_half_open_connections_pushes_out_itself_alone(served: Served) -> None:
    """They come from one address, an honest peer from another; in turn silent and half-said."""
    hello = b"\x16\x03\x01\x02\x00\x01"
    socks: list[socket.socket] = []
    loop = asyncio.get_running_loop()
    observer, times = served.pki.observer(), []
    connector = aiohttp.TCPConnector(
        ssl=served.pki.context(observer), local_addr=("127.0.0.2", 0), force_close=True
    )
    async with aiohttp.ClientSession(connector=connector) as session:
        for n in range(800):
            sock = socket.socket()
            sock.setblocking(False)
            await loop.sock_connect(sock, ("127.0.0.1", served.port))
            if n % 2:
                with contextlib.suppress(OSError):
                    await loop.sock_sendall(sock, hello)
            socks.append(sock)
            if n % 200 == 199:
                begun = time.monotonic()
                async with session.get(f"https://127.0.0.1:{served.port}/status") as answer:
                    assert answer.status == 200
                times.append(time.monotonic() - begun)
    for sock in socks:
        sock.close()
    put_out, too_slow = served.refused["put_out"], served.refused["handshake_timeout"]
    assert put_out > 0
    assert put_out + too_slow > 500  # the flood may take longer than a handshake may
    print(f"put out {put_out}, an honest peer served in {max(times):.3f} s")


async def test_a_host_that_calls_itself_a_host_is_still_no_peer(served: Served) -> None:
    """A certificate of the fleet is not enough: an agent has nothing to ask of an agent."""
    member = served.pki.member(host_uri(DOMAIN, HOST))
    assert await served.bytes_for(served.pki.context(member), _GET) == b""
