"""A process that admits deployments into a store which others use too.

    python -m tests.fakes.admitting_process STORE

For each line of JSON on stdin (`name`, `port`, `memory_mib`: the host's) it admits one deployment
that needs 256 MiB, and prints a line: `admitted`, or the code of the refusal. With `lease` it asks
for a promise of that much instead, for so many seconds. With `gpus` the host has so many cards,
and each deployment needs one.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

from agent.capacity.supply import HostSupply
from agent.errors import AgentError
from agent.host.clock import RealClock
from agent.model.ids import DeploymentName
from agent.model.resources import Listen
from agent.store.port import Transaction
from agent.store.sqlite import SqliteStore
from agent.updates.admission.admit import Ask, Terms, admit_new
from agent.updates.admission.leases import admit_lease
from agent.updates.orders import Caller, NewLease
from simulator.boards import bdf, cards
from simulator.simulated_host import release

CHECKOUT = Path(__file__).resolve().parent.parent.parent


def start(store: Path) -> subprocess.Popen[str]:
    """Such a process, once it has opened the store."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.fakes.admitting_process", str(store)],
        cwd=CHECKOUT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert hear(process) == "ready"
    return process


def tell(process: subprocess.Popen[str], **order: Any) -> None:
    pipe: IO[str] | None = process.stdin
    assert pipe is not None
    pipe.write(json.dumps(order) + "\n")
    pipe.flush()


def hear(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


async def main(path: Path) -> None:
    clock = RealClock()
    store = await SqliteStore.open(path, clock.now)
    print("ready", flush=True)
    for line in sys.stdin:
        print(await _admit(store, clock, json.loads(line)), flush=True)
    await store.close()


async def _admit(store: SqliteStore, clock: RealClock, order: dict[str, Any]) -> str:
    gpus = order.get("gpus", 0)
    ask = Ask(
        name=DeploymentName(order["name"]),
        release=release("v1", memory_mib=256, gpus=1 if gpus else 0),
        listen=Listen(address="127.0.0.1", port=order["port"]),
        publish=(),
        domain=None,
        variables={},
        secrets={},
    )
    supply = HostSupply(
        memory_mib=order["memory_mib"],
        vcpus=64,
        addresses=tuple(f"10.9.0.{n}" for n in range(2, 200)),
        disk_free_mib=100_000,
        boards=cards(map(bdf, range(1, gpus + 1))),
    )
    terms = Terms(supply=supply, now=clock.now(), caller=Caller(name="test"))

    def work(tx: Transaction) -> None:
        if "lease" in order:
            wanted = NewLease(demand=ask.release.demand, ttl_s=order["lease"])
            admit_lease(tx, wanted, ask.release.demand, terms)
        else:
            admit_new(tx, ask, terms)

    try:
        await store.transact(work)
    except AgentError as error:
        return error.code
    return "admitted"


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
