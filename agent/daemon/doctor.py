"""The doctor as the agent itself sees the host: its user, its namespaces, its rights.

A process of its own looks, so that neither what a look loads nor what it waits for is the agent's.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import msgspec

from agent.errors import describe
from agent.host.commands import CommandError, RunCommand, run_command
from agent.wire.answers import Checkup, CheckupLine

_TIMEOUT_S = 50.0  # the command line waits for 60
_FRESH_S = 2.0


class Doctor:
    """Looks when somebody asks; who asks meanwhile, or right afterwards, is told the same."""

    def __init__(self, config_path: Path | None, run: RunCommand = run_command) -> None:
        given = ["--config", str(config_path.absolute())] if config_path else []
        self._argv = [sys.executable, "-m", "agent", *given, "doctor", "--here", "-o", "json"]
        self._run = run
        self._looking = asyncio.Lock()
        self._told: Checkup | None = None
        self._told_at = 0.0

    async def look(self) -> Checkup:
        """Every line; one that says so if the look was not finished."""
        async with self._looking:
            now = asyncio.get_running_loop().time()
            if self._told is None or now - self._told_at > _FRESH_S:
                self._told = await self._look()
                self._told_at = asyncio.get_running_loop().time()
            return self._told

    async def _look(self) -> Checkup:
        try:
            done = await self._run(self._argv, timeout_s=_TIMEOUT_S)
        except CommandError as error:
            return _unfinished(describe(error))
        try:
            return Checkup(lines=msgspec.json.decode(done.stdout, type=list[CheckupLine]))
        except msgspec.DecodeError:
            return _unfinished(done.complaint)


def _unfinished(why: str) -> Checkup:
    told = f"the agent's own look was not finished: {why}"
    return Checkup(lines=[CheckupLine(what="doctor", state="error", detail=told)])
