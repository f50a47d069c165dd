"""Server-sent events, bounded: so many followers, so much patience with a slow one."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence

import msgspec
from aiohttp import web

from agent.api.problems import HttpError
from agent.host.paced_log import PacedLog
from agent.model.event import Event
from agent.updates.errors import PrunedError
from agent.updates.port import Engine

_log = PacedLog(logging.getLogger(__name__))

MAX_STREAMS = 64
MAX_STREAMS_OF_ONE = 32  # by name: observers leave room for the coordinator
HEARTBEAT_S = 15.0
PATIENCE_S = 20.0
_BATCH = 200


class Streams:
    """All followers. Each costs one task and one batch of events, however slow its reader."""

    def __init__(
        self,
        limit: int = MAX_STREAMS,
        limit_of_one: int = MAX_STREAMS_OF_ONE,
        heartbeat_s: float = HEARTBEAT_S,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._limit = limit
        self._limit_of_one = limit_of_one
        self._heartbeat_s = heartbeat_s
        self._patience_s = patience_s
        self._tasks: dict[asyncio.Task[object], str] = {}  # and whose it is

    @property
    def count(self) -> int:
        return len(self._tasks)

    async def follow(
        self, engine: Engine, request: web.Request, after: int, who: str
    ) -> web.StreamResponse:
        """Send events until the reader goes, is too slow, or the agent closes.

        Raises PrunedError before anything was sent if `after` is too old; a reader who falls so
        far behind later gets an event `pruned` and the end.
        """
        of_one = Counter(self._tasks.values())[who]
        if self.count >= self._limit or of_one >= self._limit_of_one:
            raise HttpError(503, "too_many_streams", "Too many followers of events already.")
        task = asyncio.current_task()
        assert task is not None
        self._tasks[task] = who
        try:
            seen = engine.changed.count
            batch = await engine.events(after, _BATCH)
            response = web.StreamResponse(
                headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
            )
            await response.prepare(request)
            follower = _Follower(request, response, engine, self._heartbeat_s, self._patience_s)
            await follower.run(batch, after, seen)
        finally:
            del self._tasks[task]
        return response

    def close(self) -> None:
        """End every stream."""
        for task in self._tasks:
            task.cancel()


class _Follower:
    def __init__(
        self,
        request: web.Request,
        response: web.StreamResponse,
        engine: Engine,
        heartbeat_s: float,
        patience_s: float,
    ) -> None:
        self._request = request
        self._response = response
        self._engine = engine
        self._heartbeat_s = heartbeat_s
        self._patience_s = patience_s

    async def run(self, batch: Sequence[Event], after: int, seen: int) -> None:
        try:
            await self._send(b": following\n\n")
            while True:
                for event in batch:
                    await self._send(_frame(event))
                    after = event.sequence
                if not batch:
                    seen = await self._rest(seen)
                batch = await self._engine.events(after, _BATCH)
        except PrunedError as error:
            await self._send(
                b'event: pruned\ndata: {"oldest":%d}\n\n' % error.oldest,
            )
        except TimeoutError:
            _log.info("follower of events too slow, closed")
            self._abort()
        except ConnectionError:
            return
        except Exception as error:  # noqa: BLE001 - the head is sent: no other way is left to tell of it
            _log.error("stream of events broke", exc_info=error)
            self._abort()

    def _abort(self) -> None:
        self._response.force_close()
        if self._request.transport is not None:
            self._request.transport.abort()

    async def _rest(self, seen: int) -> int:
        """Until something changed; a comment now and then shows that the line is alive."""
        count = await self._engine.changed.beyond(seen, self._heartbeat_s)
        if count == seen:
            await self._send(b": alive\n\n")
        return count

    async def _send(self, data: bytes) -> None:
        async with asyncio.timeout(self._patience_s):
            await self._response.write(data)


def _frame(event: Event) -> bytes:
    return b"id: %d\ndata: %s\n\n" % (event.sequence, msgspec.json.encode(event))
