"""What a coordinator answers that is no answer: told as being away, whatever the bytes are."""

from __future__ import annotations

import ssl

import pytest
from aiohttp import web

from agent.link.client import AwayError, CoordinatorClient, RejectedError
from agent.wire.report import ReportAnswer

DEEP = b'{"more":' + b"[" * 60_000 + b"]" * 60_000 + b"}"


async def sent(status: int, body: bytes) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=status, body=body)

    app = web.Application()
    app.router.add_post("/", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        _, port = runner.addresses[0]
        client = CoordinatorClient(f"http://127.0.0.1:{port}", ssl.create_default_context())
        try:
            await client.send("POST", "/", b"{}", ReportAnswer)
        finally:
            await client.close()
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("body", [b"", b"\xff", b"[]", b'{"protocol":1e999}', DEEP])
async def test_an_answer_that_cannot_be_read_is_none(body: bytes) -> None:
    with pytest.raises(AwayError, match="not one of protocol 1"):
        await sent(200, body)


@pytest.mark.parametrize("body", [b"", b"\xff", DEEP])
async def test_a_refusal_whose_reason_cannot_be_read_is_a_refusal(body: bytes) -> None:
    with pytest.raises(RejectedError, match="it answered 409: it did not say why"):
        await sent(409, body)
