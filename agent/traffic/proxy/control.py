"""The proxy's control socket: requests in, answers out, one line each."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

import msgspec

from agent.errors import describe
from agent.traffic.port import PortTakenError, StaleGenerationError, TrafficError
from agent.traffic.proxy import messages
from agent.traffic.proxy.messages import ProxyReply, Request
from agent.traffic.proxy.router import Router


class Control:
    """Serves a Router on a unix socket that only its owner can open."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._decoder = msgspec.json.Decoder(Request)
        self._encoder = msgspec.json.Encoder()
        self.stop = asyncio.Event()

    async def open(self, path: Path) -> asyncio.Server:
        """Replaces a socket that a dead proxy left. The caller holds the lock beside it."""
        path.unlink(missing_ok=True)
        mask = os.umask(0o177)
        try:
            return await asyncio.start_unix_server(
                self._converse, path, limit=messages.LINE_LIMIT, backlog=16
            )
        finally:
            os.umask(mask)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A request that arrived whole is carried out, also if the agent dies meanwhile."""
        try:
            with contextlib.suppress(ConnectionError, asyncio.LimitOverrunError, ValueError):
                while line := await reader.readline():
                    answer = await self._answer(line) if line.endswith(b"\n") else None
                    if answer is None:
                        break
                    writer.write(self._encoder.encode(answer) + b"\n")
                    await writer.drain()
        finally:
            writer.close()  # also after a defect of ours: nobody waits for an answer then

    async def _answer(self, line: bytes) -> ProxyReply:
        try:
            return await self._carry_out(self._decoder.decode(line))
        except msgspec.MsgspecError as error:
            return ProxyReply(error=f"the traffic proxy does not understand: {error}")
        except PortTakenError as error:
            return ProxyReply(error=describe(error), taken=error.listen)
        except TrafficError as error:
            return ProxyReply(error=describe(error), stale=isinstance(error, StaleGenerationError))

    async def _carry_out(self, request: Request) -> ProxyReply:
        match request:
            case messages.Version():
                return ProxyReply(protocol=messages.PROTOCOL, pid=os.getpid())
            case messages.Apply(order=order):
                await self._router.apply(order)
            case messages.Remove(deployment=deployment):
                await self._router.remove(deployment)
            case messages.Observe():
                return ProxyReply(orders=self._router.orders)
            case messages.Connections(endpoint=endpoint):
                return ProxyReply(count=self._router.connections(endpoint))
            case messages.Reset(endpoint=endpoint):
                return ProxyReply(count=self._router.reset(endpoint))
            case messages.SetLimits(limits=limits):
                self._router.limit(limits)
            case messages.Refused():
                return ProxyReply(refused=self._router.refused)
            case messages.Shutdown():
                self._router.close()
                self._router.forget()
                self.stop.set()
        return ProxyReply()
