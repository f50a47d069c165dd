"""An agent in a process of its own, so that it can be killed while its data plane serves."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from agent.traffic.port import RouteOrder

_REPOSITORY = Path(__file__).parents[2]
_SCRIPT = """
import asyncio, sys, msgspec
from pathlib import Path
from agent.traffic.haproxy import HaproxyTraffic
from agent.traffic.port import RouteOrder
from agent.traffic.userspace import UserspaceTraffic
d = Path(sys.argv[1])
async def main():
    t = {traffic}
    await t.start()
    await t.apply(msgspec.json.decode(sys.stdin.readline(), type=RouteOrder))
    print("applied", flush=True)
    await asyncio.sleep(3600)
asyncio.run(main())
"""


@contextlib.contextmanager
def agent_that_applied(
    wanted: RouteOrder, directory: Path, traffic: str
) -> Iterator[subprocess.Popen[bytes]]:
    """It has `wanted` in force, and stays until it is killed.

    `traffic`: the expression that makes its data plane; `d` is the directory in it.
    """
    argv = [sys.executable, "-c", _SCRIPT.format(traffic=traffic), str(directory)]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, cwd=_REPOSITORY) as agent:
        assert agent.stdin is not None
        assert agent.stdout is not None
        agent.stdin.write(msgspec.json.encode(wanted) + b"\n")
        agent.stdin.flush()
        assert agent.stdout.readline() == b"applied\n"
        yield agent
