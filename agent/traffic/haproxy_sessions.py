"""Which clients a server of HAProxy's has, and who disconnects them (`haproxy_reset.py`)."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from typing import Protocol

from agent.host.commands import CommandError, RunCommand
from agent.traffic import haproxy_reset
from agent.traffic.haproxy_config import BACKEND
from agent.traffic.haproxy_reset import ClientSession

_SESSION = re.compile(
    r"src=(?P<source>\S+) fe=\S+ be=(?P<backend>\S+) srv=(?P<server>\S+) "
    r".*?(?:s0|scf)=\[[^\]]*fd=(?P<fd>-?\d+)"
)
_UNIT_S = 30.0


class Disconnect(Protocol):
    """Disconnects clients of the process `pid`, as far as that can be done.

    Returns over how many nothing was under way, so that they are left to HAProxy's own closing.
    """

    async def __call__(self, pid: int, sessions: Sequence[ClientSession]) -> int: ...


def sessions_of(server: str, listing: str) -> list[ClientSession]:
    """Those of `show sess` that go to this server."""
    return [
        ClientSession(found["source"], int(found["fd"]))
        for found in map(_SESSION.search, listing.splitlines())
        if found and found["backend"] == BACKEND and found["server"] == server
    ]


async def disconnect_here(pid: int, sessions: Sequence[ClientSession]) -> int:
    """By this very process."""
    return haproxy_reset.reset(pid, sessions)


def disconnect_by(run: RunCommand) -> Disconnect:
    """By a program that `run` starts: where our own unit is closed to others' descriptors."""

    async def disconnect(pid: int, sessions: Sequence[ClientSession]) -> int:
        program = [sys.executable, "-I", "-S", haproxy_reset.__file__, str(pid)]
        try:
            done = await run(program, stdin=json.dumps(sessions).encode(), timeout_s=_UNIT_S)
        except CommandError:
            return 0  # HAProxy's own closing is what they see
        return int(done.stdout) if done.status == 0 else 0

    return disconnect
