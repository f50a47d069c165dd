"""The daemon with a probe of its event loop, or the probe alone, as the noise of the machine.

    python -m bench.watched CONFIG OUT     runs the daemon
    python -m bench.watched - OUT          runs nothing besides

At its start, and on SIGUSR1, the worst lag since the last one is written to OUT, in seconds: how
much later than asked for the loop came back from a sleep of 2 ms.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

from agent.daemon.parts import Assembly, build
from agent.daemon.run import main

TICK_S = 0.002


class LagProbe:
    """Sleeps and looks how late it is."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._worst_s = 0.0
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, self._tell)
        self.task = loop.create_task(self.run())
        self._tell()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            before = loop.time()
            await asyncio.sleep(TICK_S)
            self._worst_s = max(self._worst_s, loop.time() - before - TICK_S)

    def _tell(self) -> None:
        fresh = self._out.with_suffix(".new")
        fresh.write_text(f"{self._worst_s:.6f}\n")
        fresh.replace(self._out)
        self._worst_s = 0.0


def worst_of(pid: int, out: Path) -> None:
    """Ask a probe for its worst, which is written soon."""
    out.unlink(missing_ok=True)
    os.kill(pid, signal.SIGUSR1)


async def _alone(out: Path) -> None:
    await LagProbe(out).task


def _watched(out: Path) -> Any:
    probes = []

    def join(*parts: Any) -> Assembly:
        probes.append(LagProbe(out))
        return build(*parts)

    return join


if __name__ == "__main__":
    config, written = sys.argv[1], Path(sys.argv[2])
    if config == "-":
        asyncio.run(_alone(written))
    else:
        sys.exit(main(Path(config), _watched(written)))
