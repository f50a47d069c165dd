"""The daemon, halted (SIGSTOP) by itself at the first moment of a step of an update, on order.

    python -m tests.fakes.halting_daemon --orders FILE --config FILE run

The file of orders names the step. It is removed when the daemon halts: the order is for once. The
step is recorded then, and nothing of it was done.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agent.config import Config
from agent.daemon import run
from agent.daemon.choices import Choices
from agent.daemon.parts import Assembly, build
from agent.host.clock import RealClock
from agent.model.ids import HostId
from agent.store.port import Reader
from agent.store.sqlite import SqliteStore


class Halting:
    """The store; halts after the transaction that brought the step about."""

    def __init__(self, store: SqliteStore, orders: Path) -> None:
        self._store = store
        self._orders = orders

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._store, attribute)

    async def transact(self, work: Callable[[Any], Any]) -> Any:
        result = await self._store.transact(work)
        with contextlib.suppress(FileNotFoundError):
            wanted = self._orders.read_text()
            if wanted in await self._store.read(_steps):
                self._orders.unlink()
                os.kill(os.getpid(), signal.SIGSTOP)
        return result


def _steps(tx: Reader) -> set[str]:
    """Of the updates that run."""
    running = (tx.running_update(row.name) for row in tx.deployments())
    return {str(update.step) for update in running if update is not None}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser()
    for name in ("orders", "config"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("verb", choices=["run"])
    given = parser.parse_args(arguments)

    def join(
        config: Config, choices: Choices, clock: RealClock, store: SqliteStore, host_id: HostId
    ) -> Assembly:
        return build(config, choices, clock, Halting(store, given.orders), host_id)

    return run.main(given.config, join)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
