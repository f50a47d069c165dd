"""One round against real TLS servers, well behaved and not."""

from __future__ import annotations

import asyncio
import gzip
import re
import socket
import struct
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import pytest

from agent.host.contact import NoAnswerError, client_context, open_tcp
from agent.model.enclave import Endpoint
from agent.model.ids import EnclaveId
from agent.probes.guest_metrics import MetricsAccess
from agent.probes.port import ProbeTarget, TcpCheck
from agent.probes.round import RoundOrder, RoundResult, is_relayed, run_round
from agent.probes.verdict import ProbeResult
from simulator.manual_clock import ManualClock
from tests.fakes.tls_guest import (
    BOOT,
    CONTAINERS,
    METRICS,
    Script,
    TlsGuest,
    booted,
    container,
    cut,
    endlessly,
    hang,
    identity,
    listed,
    reply,
    says,
    stage,
)

BOOT_BODY = {"error": {"type": "workload_unavailable", "status": "pending"}, "boot": {}}
GZIPPED = reply(200, gzip.compress(b'{"stages": []}')).replace(
    b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n", 1
)
SHORT_S = 0.3
LONG_S = 20.0


@asynccontextmanager
async def running(guest: TlsGuest) -> AsyncIterator[Endpoint]:
    endpoint = await guest.start()
    try:
        yield endpoint
    finally:
        await guest.stop()


def target(
    endpoint: Endpoint,
    *,
    health_path: str = "/",
    tcp: tuple[TcpCheck, ...] = (),
    names: tuple[str, ...] = ("web",),
    metrics_access: MetricsAccess | None = None,
) -> ProbeTarget:
    return ProbeTarget(
        enclave=EnclaveId("aaaaaaaa"),
        launch_uuid="u1",
        https=endpoint,
        health_path=health_path,
        tcp=tcp,
        container_names=names,
        metrics_access=metrics_access,
    )


def order(timeout_s: float = LONG_S, *, with_metrics: bool = False) -> RoundOrder:
    return RoundOrder(
        context=client_context(),
        timeout_s=timeout_s,
        now=ManualClock().now,
        with_metrics=with_metrics,
    )


async def ask(guest: TlsGuest, timeout_s: float = LONG_S, **changes: object) -> RoundResult:
    async with running(guest) as endpoint:
        return await run_round(target(endpoint, **changes), order(timeout_s))


def failures(result: RoundResult) -> dict[str, ProbeResult]:
    return {o.probe: o for o in result.observations if not o.passed}


async def test_a_good_guest_passes_everything_over_one_connection_with_its_key() -> None:
    guest = TlsGuest()
    async with running(guest) as endpoint:
        result = await run_round(target(endpoint), order(with_metrics=True))
    assert failures(result) == {}
    assert [o.probe for o in result.observations] == ["boot-stages", "containers", "https /"]
    assert guest.visits == [[BOOT, CONTAINERS, METRICS, "/"]]
    assert result.keys == (guest.identity.spki_sha256,)
    assert result.metrics == {"cpu_util": 3}
    assert result.boot is not None
    assert result.boot.complete


async def test_a_guest_that_has_booted_is_asked_for_its_stages_with_the_metrics_alone() -> None:
    guest = TlsGuest()
    async with running(guest) as endpoint:
        for with_metrics in (False, True):
            wanted = replace(order(with_metrics=with_metrics), booted=True)
            result = await run_round(target(endpoint), wanted)
            assert failures(result) == {}
            assert [o.probe for o in result.observations][:2] == ["boot-stages", "containers"]
            assert (result.boot is None) is not with_metrics
    assert guest.visits == [[CONTAINERS, "/"], [BOOT, CONTAINERS, METRICS, "/"]]


async def test_tls_1_2_is_enough() -> None:
    result = await ask(TlsGuest(identity("old", tls13=False)))
    assert failures(result) == {}


async def test_a_guest_that_closes_after_each_answer_is_visited_again_with_the_same_key() -> None:
    guest = TlsGuest()
    guest.answers[BOOT] = booted().replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1)
    result = await ask(guest)
    assert failures(result) == {}
    assert [len(paths) for paths in guest.visits] == [1, 2]
    assert result.keys == (guest.identity.spki_sha256,)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (reply(200, b"{nonsense"), "is not JSON: {nonsense"),
        (reply(200, b"[1]"), "is not a JSON object"),
        (reply(200, b"\xff\xfe\x00"), "is not JSON"),
        (reply(200, b"[" * 60000), "is not JSON"),
        (says({"stages": [{"a": [[[[[[[[[[[[[[1]]]]]]]]]]]]]]}]}), "nested too deeply"),
        (says({"stages": [[]] * 5000}), "too many members"),
        (says({"stages": "x"}), "boot stages are not a list"),
        (says({"stages": []}), "boot stages are not a list"),
        (says({"stages": [3]}), "has no name"),
        (says({"stages": [{"name": 7}]}), "has no name"),
        (says({"stages": [{"name": "a", "status": ["ok"]}]}), "stage a has no known status"),
        (booted(stage("a"), stage("b", "pending"), completed=None), "stage b is not done"),
        (booted(stage("a"), completed=None), "boot is not completed"),
        (says({"oops": "\x1b[31m"}, status=500), "HTTP 500"),
        (reply(404, b"no"), "HTTP 404: no"),
        (reply(200, b"x" * 70000), "longer than 65536 bytes"),
        (GZIPPED, "is not JSON"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "is not HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\nConnection: close\r\n\r\n{", "broke off"),
    ],
)
async def test_boot_stages_of_the_wrong_form_are_a_failure_in_words(
    answer: bytes, told: str
) -> None:
    guest = TlsGuest()
    guest.answers[BOOT] = answer
    result = await ask(guest)
    (failure,) = failures(result).values()
    assert failure.probe == "boot-stages"
    assert told in failure.answer
    assert failure.answer.isprintable()
    assert len(failure.answer) < 2300
    assert result.answered


async def test_the_year_one_is_no_completion() -> None:
    """The zero value of Go's time.Time, which the public guest serves until it sets it."""
    guest = TlsGuest()
    guest.answers[BOOT] = booted(completed="0001-01-01T00:00:00Z")
    result = await ask(guest)
    assert failures(result)["boot-stages"].answer == "its boot is not completed"


NOTHING = {
    "no such document": reply(404, b"404 page not found"),
    "unavailable from the start": listed(unavailable="cannot connect to the Docker daemon"),
}


@pytest.mark.parametrize("answer", NOTHING.values(), ids=NOTHING)
async def test_an_image_that_says_nothing_of_containers_is_probed_by_what_it_has(
    answer: bytes,
) -> None:
    guest = TlsGuest()
    guest.answers[CONTAINERS] = answer
    result = await ask(guest)
    assert failures(result) == {}
    assert result.containers is None


@pytest.mark.parametrize("answer", NOTHING.values(), ids=NOTHING)
async def test_one_that_listed_them_before_in_this_launch_has_to_go_on(answer: bytes) -> None:
    guest = TlsGuest()
    guest.answers[CONTAINERS] = answer
    async with running(guest) as endpoint:
        wanted = replace(order(), tells_containers=True)
        result = await run_round(target(endpoint), wanted)
    assert list(failures(result)) == ["containers"]


async def test_a_failed_boot_stage_is_named_with_its_detail_and_decides_at_once() -> None:
    guest = TlsGuest()
    guest.answers[BOOT] = booted(stage("config"), stage("models", "failed", detail="no disk"))
    result = await ask(guest)
    assert result.boot is not None
    assert result.boot.failed == "models: no disk"
    failure = failures(result)["boot-stages"]
    assert (failure.code, failure.decisive) == ("boot_stage_failed", True)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (listed(), "container web is missing"),
        (listed(container("db")), "container web is missing"),
        (
            listed(container(status="exited", exit_code=3, error="boom")),
            "container web is exited with code 3: boom",
        ),
        (listed(container(status="restarting")), "container web is restarting"),
        (listed(container(status=None)), "container web does not run"),
        (listed(container(status=["running"])), "container web is ['running']"),
        (listed(container(oom_killed=True)), "container web was killed for want of memory"),
        (listed(container(health={"status": "unhealthy"})), "container web is unhealthy"),
        (listed(container(health={"status": "starting"})), "container web is starting"),
        (listed(container(health={"status": 3})), "health of unknown form"),
        (listed(container(health="fine")), "health of unknown form"),
        (listed(container(), unavailable="no engine"), "are not known: no engine"),
        (says({"containers": {"web": 1}}), "containers are not a list"),
        (says({"containers": [1]}), "has no name"),
        (says({"containers": [{"name": None}]}), "has no name"),
    ],
)
async def test_a_container_that_does_not_run_well_fails_by_name(answer: bytes, told: str) -> None:
    guest = TlsGuest()
    guest.answers[CONTAINERS] = answer
    failure = failures(await ask(guest))["containers"]
    assert told in failure.answer
    assert failure.code == "container_unhealthy"


@pytest.mark.parametrize("health", [None, {"status": "healthy"}, {"status": "none"}])
async def test_a_container_without_a_health_check_only_has_to_run(health: object) -> None:
    guest = TlsGuest()
    guest.answers[CONTAINERS] = listed(container(health=health), container("extra", status="x"))
    assert failures(await ask(guest)) == {}


@pytest.mark.parametrize(
    ("path", "status", "passes"),
    [
        ("/", 200, True),
        ("/", 302, True),
        ("/", 404, True),
        ("/", 401, True),
        ("/", 500, False),
        ("/", 503, False),
        ("/health", 204, True),
        ("/health", 302, True),
        ("/health", 404, False),
        ("/health", 400, False),
        ("/health", 401, False),
        ("/health", 503, False),
    ],
)
async def test_a_named_health_path_must_say_yes_and_the_root_only_answer(
    path: str, status: int, passes: bool
) -> None:
    guest = TlsGuest()
    body = b"" if status in (204, 302) else b'{"error": {"status": "pending"}}'
    answer = reply(status, body)
    if status == 204:
        answer = answer.replace(b"Content-Length: 0\r\n", b"")
    guest.answers[path] = answer
    result = await ask(guest, health_path=path)
    assert (failures(result) == {}) is passes


async def test_the_boot_answer_is_a_failure_whose_body_is_kept() -> None:
    guest = TlsGuest()
    guest.answers["/"] = says(BOOT_BODY, status=503)
    failure = failures(await ask(guest))["https /"]
    assert failure.answer.startswith("/: HTTP 503: {")
    assert "workload_unavailable" in failure.answer


async def test_of_a_passing_answer_only_the_status_is_kept() -> None:
    guest = TlsGuest()
    guest.answers["/"] = says({"env": {"TOKEN": "sesame"}})
    result = await ask(guest)
    assert {o.answer for o in result.observations} == {"ok", "HTTP 200"}


async def test_an_endless_answer_of_the_workload_passes_by_its_status_without_being_read() -> None:
    guest = TlsGuest()
    guest.answers["/"] = endlessly(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 65536)
    assert failures(await ask(guest)) == {}


@pytest.mark.parametrize(
    "flood",
    [
        endlessly(b"HTTP/1.1 200 OK\r\n", b"A: " + b"b" * 1000 + b"\r\n"),
        endlessly(b"HTTP/1.1 200 OK\r\nA: ", b"b" * 65536),
        endlessly(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 65536),
        endlessly(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;", b"x" * 65536),
        endlessly(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n" * 9999),
        endlessly(b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n" * 99),
    ],
    ids=["headers", "one header", "body", "chunk extension", "chunks", "continues"],
)
async def test_a_flood_is_cut_off_in_bounded_memory(flood: Script) -> None:
    guest = TlsGuest()
    guest.answers[BOOT] = flood
    async with running(guest) as endpoint:
        tracemalloc.start()
        try:
            result = await run_round(target(endpoint), order())
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert "boot-stages" in failures(result)
    assert peak < 16 << 20


async def test_a_hanging_answer_fails_its_probe_and_the_others_go_on() -> None:
    guest = TlsGuest()
    guest.answers[BOOT] = hang
    result = await ask(guest, 1.0)
    assert "no answer within 1 s" in failures(result)["boot-stages"].answer
    assert set(failures(result)) == {"boot-stages"}


async def test_a_guest_that_hangs_everywhere_takes_a_bounded_time_and_fails_everything() -> None:
    guest = TlsGuest()
    guest.answers = dict.fromkeys(guest.answers, hang)
    async with running(guest) as endpoint, asyncio.timeout(30):
        result = await run_round(target(endpoint), order(SHORT_S))
    assert set(failures(result)) == {"boot-stages", "containers", "https /"}
    assert not result.answered


async def test_a_connection_that_is_cut_without_an_answer_is_told() -> None:
    guest = TlsGuest()
    guest.answers[CONTAINERS] = cut
    result = await ask(guest)
    assert re.search("closed without an answer|reset", failures(result)["containers"].answer)


async def test_nobody_listening_fails_every_probe_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    result = await run_round(target(Endpoint(address="127.0.0.1", port=port)), order())
    assert {o.answer.split(": ", 1)[1] for o in result.observations} == {
        "not connected: Connection refused"
    }
    assert not result.answered
    assert result.keys == ()


@asynccontextmanager
async def tcp_server(serve: Script) -> AsyncIterator[Endpoint]:
    """A plain TCP server; leaves only when every connection was served to its end."""
    connections: list[asyncio.Task[None]] = []

    async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.append(task)
        with suppress(OSError):
            await serve(reader, writer)
        writer.transport.abort()

    server = await asyncio.start_server(serve_one, "127.0.0.1", 0)
    async with server:
        address, port = server.sockets[0].getsockname()
        yield Endpoint(address=address, port=port)
        await asyncio.gather(*connections)


async def test_a_server_without_tls_is_told_as_such() -> None:
    async def plain(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 hello\r\n")
        await writer.drain()

    async with tcp_server(plain) as endpoint:
        result = await run_round(target(endpoint), order())
    assert "TLS failed: WRONG_VERSION_NUMBER" in failures(result)["https /"].answer


async def silent(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def chatty(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"220 hello\r\n")
    await silent(reader, writer)


async def closing(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()
    await writer.wait_closed()


async def resetting(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.get_extra_info("socket").setsockopt(
        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
    )


@pytest.mark.parametrize("serve", [silent, chatty])
async def test_a_port_that_keeps_the_connection_has_accepted(serve: Script) -> None:
    async with (
        tcp_server(serve) as endpoint,
        open_tcp(endpoint, timeout_s=LONG_S) as connection,
    ):
        await connection.settle(0.05)


@pytest.mark.parametrize(
    ("serve", "told"), [(closing, "accepted, then closed"), (resetting, "then reset|was reset")]
)
async def test_a_port_that_drops_the_connection_at_once_has_not_accepted(
    serve: Script, told: str
) -> None:
    async with tcp_server(serve) as endpoint:
        with pytest.raises(NoAnswerError, match=told):
            async with open_tcp(endpoint, timeout_s=LONG_S) as connection:
                await connection.settle(LONG_S)


async def test_every_tcp_check_of_a_round_has_its_own_result() -> None:
    guest = TlsGuest()
    with socket.create_server(("127.0.0.1", 0)) as refused:
        port = refused.getsockname()[1]
    async with running(guest) as endpoint, tcp_server(silent) as good:
        checks = (
            TcpCheck(guest_port=9000, endpoint=good),
            TcpCheck(guest_port=9001, endpoint=Endpoint(address="127.0.0.1", port=port)),
        )
        result = await run_round(target(endpoint, tcp=checks), order())
    assert {o.probe: o.passed for o in result.observations if o.probe.startswith("tcp")} == {
        "tcp 9000": True,
        "tcp 9001": False,
    }


@pytest.mark.parametrize(
    ("address", "relayed"),
    [("127.0.0.1", True), ("127.8.0.2", True), ("::1", True), ("10.20.0.2", False)],
)
def test_only_what_qemu_forwards_from_loopback_is_accepted_by_another(
    address: str, relayed: bool
) -> None:
    check = TcpCheck(guest_port=9000, endpoint=Endpoint(address=address, port=9000))
    assert is_relayed(check) is relayed
