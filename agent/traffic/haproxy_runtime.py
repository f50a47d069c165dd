"""Speaks with a HAProxy process by its runtime API, a line a command, over a socket of its own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from agent.traffic.port import TrafficError

_PROMPT = b"\n> "
_LIMIT = 16 << 20
_ANSWER_S = 10.0


class RuntimeCommands(Protocol):
    """Gives commands, one after the other; returns an answer for each.

    Raises OSError if there is no process, TrafficError if it does not answer as one.
    """

    async def __call__(self, socket: Path, commands: Sequence[str]) -> list[str]: ...


async def ask(socket: Path, commands: Sequence[str]) -> list[str]:
    """Over one connection. A command that was sent may be carried out even if this raises."""
    reader, writer = await asyncio.open_unix_connection(socket, limit=_LIMIT)
    try:
        async with asyncio.timeout(_ANSWER_S):
            return [await _say(reader, writer, command) for command in ("prompt", *commands)][1:]
    except TimeoutError as error:
        raise TrafficError(f"HAProxy did not answer in {_ANSWER_S:g} s") from error
    except asyncio.IncompleteReadError as error:
        raise ConnectionResetError("HAProxy hung up") from error
    except asyncio.LimitOverrunError as error:
        raise TrafficError("HAProxy's answer is too long") from error
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, command: str) -> str:
    writer.write(command.encode() + b"\n")
    await writer.drain()
    answer = await reader.readuntil(_PROMPT)
    return answer.removesuffix(_PROMPT).decode(errors="replace").strip("\n")


def complaint(commands: Sequence[str], answers: Sequence[str]) -> str | None:
    """What HAProxy had against the first command that it refused; most say nothing if content.

    A listener that is in the wanted state already is no complaint.
    """
    for command, answer in zip(commands, answers, strict=True):
        text = answer.strip()
        if text and "already" not in text and not text.startswith("New server registered"):
            return f"{command.split(' ', 3)[:3]}: {text}"
    return None
