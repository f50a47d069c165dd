"""A visit of a guest on a real TLS socket: what is an answer, and what brings the next."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from agent.host.contact import Ending, HttpAnswer, NoAnswerError, client_context
from agent.host.guest_http import GuestHttp
from tests.fakes.tls_guest import Script, TlsGuest, hang, identity, reply

LONG_S = 20.0
EARLY = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"
UPGRADE = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: other\r\n\r\n"


@pytest.fixture
async def guest() -> AsyncIterator[TlsGuest]:
    guest = TlsGuest()
    yield guest
    await guest.stop()


def then_close(answer: bytes) -> Script:
    """Send it, and close without a word."""

    async def script(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await writer.drain()
        raise ConnectionResetError  # the fake closes

    return script


async def ask(guest: TlsGuest, answer: bytes | Script, **changes: float) -> HttpAnswer:
    guest.answers["/"] = answer
    async with GuestHttp(await guest.start(), client_context()) as guest_http:
        return await guest_http.get("/", **{"timeout_s": LONG_S, "max_bytes": 1000, **changes})


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (reply(200, b"whole"), HttpAnswer(200, b"whole", Ending.COMPLETE)),
        (EARLY * 3 + reply(200, b"whole"), HttpAnswer(200, b"whole", Ending.COMPLETE)),
        (b"HTTP/1.1 204 No Content\r\n\r\n", HttpAnswer(204, b"", Ending.COMPLETE)),
        (b"HTTP/1.0 200 OK\r\n\r\nto the end", HttpAnswer(200, b"to the end", Ending.COMPLETE)),
        (reply(200, b"whole")[:-2], HttpAnswer(200, b"who", Ending.CUT_OFF)),
        (CHUNKED + b"2\r\nde\r\n0\r\n\r\n", HttpAnswer(200, b"abcde", Ending.COMPLETE)),
        (CHUNKED + b"2\r\nd", HttpAnswer(200, b"abcd", Ending.CUT_OFF)),
        (
            reply(200, b"mine") + reply(500, b"not asked"),
            HttpAnswer(200, b"mine", Ending.COMPLETE),
        ),
        (reply(500, b"x" * 1001), HttpAnswer(500, b"x" * 1000, Ending.TOO_LONG)),
    ],
    ids=[
        "framed",
        "interim",
        "empty",
        "to the end",
        "short",
        "chunks",
        "chunks cut",
        "two",
        "long",
    ],
)
async def test_what_is_an_answer(guest: TlsGuest, answer: bytes, expected: HttpAnswer) -> None:
    assert await ask(guest, then_close(answer)) == expected


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"SSH-2.0-OpenSSH_9\r\n", "its answer is not HTTP"),
        (b"HTTP/1.1 two hundred\r\n\r\n", "its answer is not HTTP"),
        (UPGRADE, "its answer is not HTTP"),
        (b"", "closed without an answer"),
        (EARLY, "closed without an answer"),
        (b"HTTP/1.1 200 OK\r\nA: b", "closed without an answer"),
    ],
    ids=["no HTTP", "no status", "upgrade", "nothing", "interim alone", "half a head"],
)
async def test_what_is_none(guest: TlsGuest, answer: bytes, told: str) -> None:
    with pytest.raises(NoAnswerError, match=told):
        await ask(guest, then_close(answer))


async def test_a_status_without_its_body_in_time_is_an_answer(guest: TlsGuest) -> None:
    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc")
        await hang(reader, writer)

    answer = await ask(guest, slow, body_wait_s=0.1)
    assert answer == HttpAnswer(200, b"abc", Ending.CUT_OFF)


async def test_a_hanging_guest_costs_the_time_that_it_was_given(guest: TlsGuest) -> None:
    with pytest.raises(NoAnswerError, match=r"no answer within 0\.1 s"):
        await ask(guest, hang, timeout_s=0.1)


async def test_whole_answers_come_over_one_connection_with_its_key(guest: TlsGuest) -> None:
    endpoint = await guest.start()
    async with GuestHttp(endpoint, client_context()) as guest_http:
        for _ in range(3):
            guest_http.begin_round()
            await guest_http.get("/", timeout_s=LONG_S, max_bytes=1000)
            assert guest_http.keys == [guest.identity.spki_sha256]
    assert guest.visits == [["/"] * 3]


@pytest.mark.parametrize(
    "answer",
    [
        reply(200, b"x" * 1001),  # longer than wanted
        reply(200, b"bye", close=True),
        reply(200, b"one") + reply(200, b"and one that nobody asked for"),
        then_close(reply(200, b"closed afterwards")),
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nmore",
    ],
    ids=["too long", "close told", "two answers", "closed", "more than told"],
)
async def test_after_anything_else_comes_another_connection(
    guest: TlsGuest, answer: bytes | Script
) -> None:
    guest.answers["/"] = answer
    async with GuestHttp(await guest.start(), client_context()) as guest_http:
        for _ in range(3):
            given = await guest_http.get("/", timeout_s=LONG_S, max_bytes=1000)
            assert given.status == 200
    assert guest.visits == [["/"]] * 3


async def test_a_connection_that_is_not_used_again_is_closed_at_once(guest: TlsGuest) -> None:
    closed = asyncio.Event()

    async def says_close_and_stays(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        await reader.read()
        closed.set()
        raise ConnectionResetError

    guest.answers["/"] = says_close_and_stays
    async with (
        GuestHttp(await guest.start(), client_context()) as guest_http,
        asyncio.timeout(LONG_S),
    ):
        await guest_http.get("/", timeout_s=LONG_S, max_bytes=1000)
        await closed.wait()


async def test_a_visit_that_is_over_leaves_no_connection(guest: TlsGuest) -> None:
    async with GuestHttp(await guest.start(), client_context()) as guest_http:
        await guest_http.get("/", timeout_s=LONG_S, max_bytes=1000)
    async with asyncio.timeout(LONG_S):
        while not guest.idle:
            await asyncio.sleep(0.01)


async def test_another_key_on_the_next_connection_is_noted(guest: TlsGuest) -> None:
    endpoint = await guest.start()
    guest.answers["/"] = reply(200, b"", close=True)
    async with GuestHttp(endpoint, client_context()) as guest_http:
        await guest_http.get("/", timeout_s=LONG_S, max_bytes=1000)
        await guest.stop()
        impostor = TlsGuest(identity("impostor"))
        await impostor.start(endpoint.port)
        await guest_http.get("/", timeout_s=LONG_S, max_bytes=1000)
        await impostor.stop()
    assert guest_http.keys == [guest.identity.spki_sha256, impostor.identity.spki_sha256]
