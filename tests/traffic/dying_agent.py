"""An agent that applies one order and is killed at a step. argv: KIND STEP PATH ORDER.

Even steps are before a command, odd ones after it. Exits 0 if the order needed fewer commands.
PATH is nftables' state file, or HAProxy's directory.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from agent.host.commands import CompletedCommand, run_command
from agent.traffic.haproxy import HaproxyTraffic
from agent.traffic.haproxy_runtime import ask
from agent.traffic.nftables import NftablesTraffic
from agent.traffic.port import RouteOrder, Traffic
from tests.traffic.worlds import BRIDGE, SUBNET


class Dying:
    """Runs commands until its time has come."""

    def __init__(self, steps: int) -> None:
        self._left = steps

    def _step(self) -> None:
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self._left -= 1

    async def __call__(
        self, argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float = 10.0
    ) -> CompletedCommand:
        self._step()
        finished = await run_command(argv, stdin=stdin, timeout_s=timeout_s)
        self._step()
        return finished

    async def ask(self, socket: Path, commands: Sequence[str]) -> list[str]:
        """Each changing command is a step; questions are one together."""
        if all(command.startswith("show ") for command in commands):
            self._step()
            return await ask(socket, commands)
        answers = []
        for command in commands:
            self._step()
            answers += await ask(socket, [command])
        self._step()
        return answers


def agent(kind: str, path: Path, dying: Dying) -> Traffic:
    if kind == "nftables":
        return NftablesTraffic(BRIDGE, SUBNET, (), state_file=path, run_command=dying)
    return HaproxyTraffic(
        path / "haproxy", path / "haproxy.json", run_command=dying, ask=dying.ask
    )


async def main(kind: str, step: str, path: str, order: str) -> None:
    traffic = agent(kind, Path(path), Dying(int(step)))
    await traffic.start()
    await traffic.apply(msgspec.json.decode(order, type=RouteOrder))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
