"""Prisoners in cages that are units of systemd: a program, to be run as root where one is booted.

python -m tests.fakes.jailed_in_units HOME
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from agent.enclaves.supervisor_systemd import SystemdSupervisor
from agent.host.cgroups import MemoryLimit
from tests.fakes.jail import Jail, not_held, wrong_in


async def main(home: Path) -> dict[str, Any]:
    """What came of everything."""
    os.umask(0o022)
    home.mkdir(parents=True)
    jail = Jail(home, SystemdSupervisor(1.0))
    try:
        neighbour = await jail.start("stay", 2)
        (first,) = await jail.told(2)
        with jail.qmp_of_the_first():
            await jail.start("end", 3, neighbour)
            (second,) = await jail.told(3)
        await jail.start("crowd", 4, tasks_max=40)
        _, crowd = await jail.told(4, 2)
        eating = await jail.start("eat", 5, memory_max_mib=64)
        limit = MemoryLimit(eating.identity.pid, "enclave-jailed05")
        await eating.wait()
        return {
            "not_held": not_held(second["outcomes"]),
            "wrong": wrong_in(second["state"]),
            "uids": [first["state"]["uid"], second["state"]["uid"]],
            "threads": crowd["threads"],
            "memory_limit_was_hit": limit.was_hit,
            "neighbour_lives": not neighbour.ended,
        }
    finally:
        await jail.leave()


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(Path(sys.argv[1])))))
