"""The guests' endpoint: what stands for their evidence, and nothing else."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import msgspec
import pytest

from agent.attestation.collateral import Entry, read_collateral
from agent.attestation.collateral_cache.endpoint import (
    PATH,
    CollateralEndpoint,
    EndpointError,
)
from agent.attestation.collateral_cache.token_bucket import TokenBuckets
from agent.attestation.snp import verify_report
from agent.door.limits import Limits
from agent.model.resources import Listen
from tests.attestation.test_collateral_cache import (  # noqa: F401 - fixtures
    AMD,
    CHIP_PATH,
    NOW,
    REPORT,
    TDX_NOW,
    Agent,
    Clock,
    begin,
    busy,
    fake_intel,
    vendors,
)
from tests.fakes.vendors import FakeVendors

Begin = Callable[..., Agent]
Serve = Callable[..., Any]


def question(evidence: bytes = REPORT, platform: str = "sev-snp", **more: Any) -> dict[str, Any]:
    return {
        "platform": platform,
        "quote_base64": base64.b64encode(evidence).decode(),
        "repo": "owner/name",
        "tag": "v1.0.0",
        **more,
    }


@pytest.fixture
async def serve(begin: Begin) -> AsyncIterator[Serve]:  # noqa: F811 - the fixture
    running: list[CollateralEndpoint] = []

    async def start(*, burst: int = 100, limits: Limits | None = None, **more: Any) -> str:
        agent = begin(**more)
        endpoint = CollateralEndpoint(
            agent.endorser, agent.clock, TokenBuckets(burst=burst), limits or Limits()
        )
        port = await endpoint.start(Listen(address="127.0.0.1", port=0))
        running.append(endpoint)
        return f"http://127.0.0.1:{port}{PATH}"

    yield start
    for endpoint in running:
        await endpoint.close()


async def ask(url: str, body: Any, method: str = "POST") -> tuple[int, dict[str, str], Any]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, url, data=data) as response,
    ):
        text = await response.text()
        said = json.loads(text) if "json" in response.content_type else text
        return response.status, dict(response.headers), said


async def test_a_guest_gets_what_its_document_needs(serve: Serve) -> None:
    status, _, said = await ask(await serve(), question())
    assert status == 200
    assert set(said) == {"format", "expires_at", "collateral"}
    assert said["format"] == "https://tinfoil.sh/predicate/attestation-collaterals/v2"
    assert said["expires_at"].startswith("2026-06-0")
    found = read_collateral(msgspec.convert(said["collateral"], tuple[Entry, ...]))
    assert found.amd is not None
    assert verify_report(REPORT, found.amd, AMD.trust, NOW).revocation_checked


async def test_a_guest_of_intel_s_gets_the_answers_as_they_came(serve: Serve) -> None:
    url = await serve(clock=Clock(TDX_NOW))
    status, _, said = await ask(url, question(fake_intel().quote(), "tdx"))
    assert status == 200
    found = read_collateral(msgspec.convert(said["collateral"], tuple[Entry, ...]))
    paths = [response.url.rpartition("/")[2] for response in found.intel]
    assert paths == [
        "tcb?fmspc=b0c06f000000",
        "identity",
        "pckcrl?ca=platform&encoding=der",
        "IntelSGXRootCA.der",
    ]
    assert [len(response.headers) for response in found.intel] == [1, 1, 1, 0]


async def test_repo_and_tag_may_be_left_out(serve: Serve) -> None:
    body = question()
    del body["repo"], body["tag"]
    assert (await ask(await serve(), body))[0] == 200


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        (b"", 400, "Expecting value"),
        (b"not JSON", 400, "Expecting value"),
        (b"\xff\xfe", 400, "UTF-8"),
        (b"[" * 10_000, 400, "nested"),
        ([], 400, "object"),
        ({"platform": "sev-snp"}, 400, "quote_base64"),
        (question(platform="sgx"), 400, "platform"),
        (question(url="https://a.example/"), 400, "url"),
        (question(tag="x" * 300), 400, "tag"),
        (question(b"short"), 400, "1184"),
        (question(REPORT, "tdx"), 400, "version"),
        (question() | {"quote_base64": "***"}, 400, "quote_base64"),
        (question() | {"quote_base64": 7}, 400, "quote_base64"),
        (question(AMD.report(chip_id=b"\x01" * 64)), 404, "nothing is known"),
        (b" " * 60_000, 413, "over"),
    ],
)
async def test_a_wrong_question_is_refused_with_the_reason(
    serve: Serve, body: Any, status: int, word: str
) -> None:
    found, _, said = await ask(await serve(), body)
    assert found == status
    assert word in said["detail"]


async def test_nothing_else_is_served(serve: Serve) -> None:
    url = await serve()
    assert (await ask(url, b"", "GET"))[0] == 405
    assert (await ask(url.replace(PATH, "/vcek/v1/Milan/crl"), b""))[0] == 404
    assert (await ask(url.replace(PATH, "/"), question()))[0] == 404


async def test_a_peer_that_asks_too_often_is_told_when(serve: Serve) -> None:
    url = await serve(burst=3)
    answers = [await ask(url, question()) for _ in range(5)]
    assert [status for status, _, _ in answers] == [200, 200, 200, 429, 429]
    assert answers[3][1]["Retry-After"] == "3"
    assert answers[3][2]["code"] == "too_many_requests"


async def test_a_busy_vendor_s_wait_is_passed_on(
    serve: Serve,
    vendors: FakeVendors,  # noqa: F811 - the fixture
) -> None:
    vendors.instead[CHIP_PATH] = busy(429, "17")
    status, headers, said = await ask(await serve(), question())
    assert (status, headers["Retry-After"], said["code"]) == (503, "17", "evidence_not_yet")


async def test_many_guests_cost_the_vendor_one_question(
    serve: Serve,
    vendors: FakeVendors,  # noqa: F811 - the fixture
) -> None:
    url = await serve()
    vendors.free.clear()
    asking = [asyncio.create_task(ask(url, question())) for _ in range(20)]
    while not vendors.seen:
        await asyncio.sleep(0.005)
    vendors.free.set()
    assert {status for status, _, _ in await asyncio.gather(*asking)} == {200}
    assert set(vendors.asked().values()) == {1}


async def test_more_at_once_than_there_is_room_for_are_told_to_come_back(
    serve: Serve,
    vendors: FakeVendors,  # noqa: F811 - the fixture
) -> None:
    url = await serve()
    vendors.free.clear()
    asking = [asyncio.create_task(ask(url, question())) for _ in range(40)]
    done: set[asyncio.Task[Any]] = set()
    while len(done) < 8:
        done, _ = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.sleep(0.01)
    assert {task.result()[0] for task in done} == {503}
    vendors.free.set()
    statuses = [status for status, _, _ in await asyncio.gather(*asking)]
    assert statuses.count(200) == 32


async def connect(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    parts = urlsplit(url)
    return await asyncio.open_connection(parts.hostname, parts.port)


async def is_over(reader: asyncio.StreamReader) -> bool:
    """Whether the other side ended it, without an answer."""
    try:
        async with asyncio.timeout(10):
            return await reader.read() == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize("said", [b"", b"POST /attestation-collaterals HTTP/1.1\r\nHost: a\r\n"])
async def test_whoever_connects_and_asks_nothing_is_hung_up_on(serve: Serve, said: bytes) -> None:
    url = await serve(limits=Limits(head_s=0.2))
    reader, writer = await connect(url)
    writer.write(said)
    assert await is_over(reader)
    writer.close()
    assert (await ask(url, question()))[0] == 200


async def test_one_guest_holds_no_more_than_its_share_and_its_next_is_let_in(
    serve: Serve,
) -> None:
    url = await serve(limits=Limits(per_peer=3))
    held = [await connect(url) for _ in range(3)]
    assert (await ask(url, question()))[0] == 200
    assert await is_over(held[0][0])  # its oldest
    for _, one in held:
        one.close()


async def test_a_connection_is_good_for_one_question(serve: Serve) -> None:
    url = await serve()
    reader, writer = await connect(url)
    writer.write(
        b"POST /attestation-collaterals HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}"
    )
    async with asyncio.timeout(10):
        answer = await reader.read()
    writer.close()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"Connection: close" in answer


async def test_a_listener_that_cannot_be_had_names_its_setting(begin: Begin) -> None:  # noqa: F811
    agent = begin()
    endpoint = CollateralEndpoint(agent.endorser, agent.clock)
    with pytest.raises(EndpointError, match=r"attestation\.collateral\.listen"):
        await endpoint.start(Listen(address="192.0.2.1", port=8480))
