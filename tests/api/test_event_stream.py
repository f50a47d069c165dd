"""Events as a stream: complete, resumable, bounded, and over when the agent closes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from agent.api.listeners import local_listener
from agent.api.server import ApiServer
from agent.api.streams import Streams
from tests.fakes.api_server import surface_of
from tests.fakes.engine import FakeEngine

FOLLOW = "http://agent/v1/events?follow=1"


async def frame(response: aiohttp.ClientResponse) -> dict[str, str]:
    """The next frame that is not a comment."""
    members: dict[str, str] = {}
    while True:
        line = (await response.content.readline()).decode()
        if not line:
            raise EOFError
        if line == "\n" and members:
            return members
        name, colon, value = line.rstrip("\n").partition(": ")
        if colon and name:
            members[name] = value


async def test_what_was_and_what_comes_are_one_stream_with_ids(api) -> None:
    await api.deploy()
    async with api.session.get(FOLLOW) as response:
        assert response.content_type == "text/event-stream"
        first = await frame(response)
        api.engine.advance("web")
        second = await frame(response)
    assert (first["id"], second["id"]) == ("1", "2")
    assert json.loads(second["data"])["to"] == "launch"


async def test_a_reader_goes_on_where_it_was(api) -> None:
    await api.deploy()
    api.engine.finish("web")
    async with api.session.get(FOLLOW, headers={"Last-Event-ID": "3"}) as response:
        assert (await frame(response))["id"] == "4"
    async with api.session.get(f"{FOLLOW}&after=4") as response:
        assert (await frame(response))["id"] == "5"


async def test_a_browser_gets_a_stream_by_what_it_accepts(api) -> None:
    await api.deploy()
    headers = {"Accept": "text/event-stream"}
    async with api.session.get("http://agent/v1/events", headers=headers) as response:
        assert (await frame(response))["id"] == "1"


async def test_a_stream_that_would_begin_before_the_oldest_is_refused(api) -> None:
    await api.deploy()
    api.engine.finish("web")
    api.engine.prune_events(4)
    answer = await api.ask("GET", "/v1/events?follow=1", headers={"Last-Event-ID": "1"})
    assert (answer.status, answer.json["oldest"]) == (410, 4)


async def test_a_reader_that_fell_behind_is_told_and_let_go(api) -> None:
    await api.deploy()
    async with api.session.get(FOLLOW) as response:
        await frame(response)
        for _ in range(3):
            api.engine.advance("web")
        api.engine.prune_events(4)
        told = await frame(response)
        assert told == {"event": "pruned", "data": '{"oldest":4}'}
        with pytest.raises(EOFError):
            await frame(response)


async def test_streams_end_when_the_agent_closes(api) -> None:
    await api.deploy()
    async with api.session.get(FOLLOW) as response:
        await frame(response)
        await asyncio.wait_for(api.server.close(), 10)
        with pytest.raises((EOFError, aiohttp.ClientPayloadError)):
            await frame(response)


@asynccontextmanager
async def serving(path: Path, engine: FakeEngine, streams: Streams) -> AsyncIterator[None]:
    surface = surface_of(engine)
    surface.streams = streams
    server = ApiServer(surface, [local_listener(path)])
    await server.start()
    yield
    await server.close()


async def test_there_are_only_so_many_followers(short_dir: Path) -> None:
    path = short_dir / "agent.sock"
    connector = aiohttp.UnixConnector(str(path))
    async with (
        serving(path, FakeEngine(), Streams(limit=1)),
        aiohttp.ClientSession(connector=connector) as session,
        session.get(FOLLOW) as first,
    ):
        assert first.status == 200
        async with session.get(FOLLOW) as second:
            assert second.status == 503
            assert (await second.json(content_type=None))["code"] == "too_many_streams"
            assert second.headers["Retry-After"]


async def test_a_silent_stream_shows_that_it_lives(short_dir: Path) -> None:
    path = short_dir / "agent.sock"
    connector = aiohttp.UnixConnector(str(path))
    async with (
        serving(path, FakeEngine(), Streams(heartbeat_s=0.01)),
        aiohttp.ClientSession(connector=connector) as session,
        session.get(FOLLOW) as response,
    ):
        lines = [await response.content.readline() for _ in range(4)]
    assert b": alive\n" in lines


async def test_a_reader_that_does_not_read_is_let_go_and_costs_little(short_dir: Path) -> None:
    engine = FakeEngine()
    path = short_dir / "agent.sock"
    streams = Streams(patience_s=0.2)
    async with serving(path, engine, streams):
        reader, writer = await asyncio.open_unix_connection(str(path), limit=1024)
        reader._transport.pause_reading()
        writer.write(b"GET /v1/events?follow=1 HTTP/1.1\r\nHost: a\r\n\r\n")
        await writer.drain()
        while streams.count == 0:
            await asyncio.sleep(0)
        for _ in range(5000):
            engine.note("x" * 500)
        engine.publish()
        while streams.count:
            await asyncio.sleep(0.01)
        writer.close()


async def test_asking_for_the_head_of_a_stream_does_not_begin_one(api) -> None:
    answer = await api.ask("HEAD", "/v1/events?follow=1")
    assert (answer.status, answer.text) == (200, "")


async def test_a_stream_that_breaks_ends_and_harms_no_other_request(api) -> None:
    await api.deploy()
    async with api.session.get(FOLLOW) as response:
        await frame(response)
        api.engine.raises = RuntimeError("events are gone")
        api.engine.publish()
        with pytest.raises((EOFError, aiohttp.ClientError)):
            await frame(response)
    assert (await api.ask("GET", "/status")).status == 200
