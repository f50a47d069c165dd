"""Processes that knock, ask or load from outside, and how they are spoken to: a line each way."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from typing import TypeVar

import msgspec

from bench.daemon import BenchError
from bench.place import ROOT

S = TypeVar("S", bound=msgspec.Struct)
_LINE_MAX = 64 << 20


@contextlib.asynccontextmanager
async def generator(name: str, spec: msgspec.Struct) -> AsyncIterator[asyncio.subprocess.Process]:
    """One of the bench's own modules as a process; it outranks the guests a little.

    It is cheap, and a generator that waits behind emulated guests would blame them for it.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", f"bench.{name}", msgspec.json.encode(spec).decode()),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=_LINE_MAX,
        start_new_session=True,
    )
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, process.pid, -5)
    try:
        yield process
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        await asyncio.shield(process.wait())


async def ask(process: asyncio.subprocess.Process, command: bytes, answer: type[S]) -> S:
    """Its answer to a command. Raises BenchError when it is no more."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(command)
    if not (line := await process.stdout.readline()):
        raise BenchError("a generator ended by itself; it says above why")
    return msgspec.json.decode(line, type=answer)
