"""A QMP server that misbehaves as it is told, on a real unix socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

GREETING = {"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}}, "capabilities": []}}
NEVER = object()  # an answer that does not come


class QmpServer:
    """Answers `query-uuid` and `query-status` as QEMU would; `answers` adds and overrides."""

    def __init__(self, launch_uuid: str) -> None:
        self.greeting: bytes | None = _line(GREETING)
        self.answers: dict[str, Any] = {
            "query-uuid": {"UUID": launch_uuid},
            "query-status": {"status": "running", "running": True},
        }
        self.raw: dict[str, bytes] = {}
        self.commands: list[str] = []
        self.connections = 0
        self._writers: set[asyncio.StreamWriter] = set()

    def emit(self, event: str, **data: Any) -> None:
        """Send an event to everybody who is connected."""
        message = {"event": event, "data": data, "timestamp": {"seconds": 1, "microseconds": 0}}
        for writer in self._writers:
            writer.write(_line(message))

    def hang_up(self) -> None:
        """Close every connection."""
        for writer in self._writers:
            writer.close()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        try:
            if self.greeting is None:
                await reader.read()
                return
            writer.write(self.greeting)
            async for message in _messages(reader):
                self._answer(message, writer)
        except ConnectionError:
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    def _answer(self, message: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        command = message.get("execute", "")
        self.commands.append(command)
        if command in self.raw:
            writer.write(self.raw[command])
            return
        answer = self.answers.get(command, {})
        if answer is NEVER:
            return
        reply = answer if isinstance(answer, dict) and "error" in answer else {"return": answer}
        if "id" in message:
            reply = reply | {"id": message["id"]}
        writer.write(_line(reply))


@asynccontextmanager
async def serving(server: QmpServer, path: Path) -> AsyncIterator[QmpServer]:
    """The server, listening."""
    listener = await asyncio.start_unix_server(server.serve, path)
    try:
        yield server
    finally:
        listener.close()
        server.hang_up()
        path.unlink(missing_ok=True)


async def _messages(reader: asyncio.StreamReader) -> AsyncIterator[dict[str, Any]]:
    """The JSON values of a stream; nothing need be between two of them."""
    decoder, text = json.JSONDecoder(), ""
    while data := await reader.read(4096):
        text += data.decode()
        while text := text.lstrip():
            try:
                message, end = decoder.raw_decode(text)
            except ValueError:
                break  # the rest is on its way
            text = text[end:]
            yield message


def _line(message: Any) -> bytes:
    return json.dumps(message).encode() + b"\n"
