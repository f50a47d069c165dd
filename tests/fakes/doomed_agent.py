"""An agent that launches one VM and is killed -9 at a chosen point, in a process of its own.

    python -m tests.fakes.doomed_agent HOME ORDER POINT

ORDER is a pickle of the enclave's row and the order to launch it. POINT: `attaching` (nothing is
started yet), `forked` (a process that is not QEMU yet holds the lock), `started` (QEMU runs, and
nothing records it), `launched`.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agent.enclaves.network_user import UserNetwork
from agent.enclaves.port import LaunchOrder
from agent.enclaves.spec import UserNic
from agent.enclaves.supervisor import StartRequest
from agent.enclaves.supervisor_detached import DetachedSupervisor
from agent.model.enclave import Enclave, ProcessIdentity
from agent.model.ids import EnclaveId
from tests.fakes.vms import CHECKOUT, SUBNET, new_fleet

POINTS = ("attaching", "forked", "started", "launched")
GAP_S = 0.3


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class DyingNetwork(UserNetwork):
    """Dies when a card is attached."""

    async def attach(
        self, enclave_id: EnclaveId, address: str, guest_ports: Sequence[int]
    ) -> UserNic:
        die()
        return await super().attach(enclave_id, address, guest_ports)


class DyingSupervisor(DetachedSupervisor):
    """Dies when QEMU was started, before anybody is told."""

    async def start(self, request: StartRequest) -> ProcessIdentity:
        identity = await super().start(request)
        die()
        return identity


class ForkingSupervisor(DetachedSupervisor):
    """Dies between fork and exec: the child becomes QEMU only a while later."""

    async def start(self, request: StartRequest) -> ProcessIdentity:
        if os.fork() == 0:
            os.setsid()
            for fd in request.pass_fds:
                os.set_inheritable(fd, True)
            time.sleep(GAP_S)
            os.execvp(request.argv[0], list(request.argv))
        die()
        raise AssertionError


async def main(home: Path, vm: Enclave, wanted: LaunchOrder, point: str) -> None:
    parts: dict[str, Any] = {
        "attaching": {"network": DyingNetwork(SUBNET)},
        "forked": {"supervisor": ForkingSupervisor()},
        "started": {"supervisor": DyingSupervisor()},
        "launched": {},
    }[point]
    fleet = new_fleet(home, **parts)
    await fleet.start()
    await fleet.adopt([])
    await fleet.launch(vm, wanted)
    die()


def launch_and_die(home: Path, vm: Enclave, wanted: LaunchOrder, point: str) -> None:
    """Have such an agent do so. Returns once it is dead."""
    pickled = home / "order"
    pickled.write_bytes(pickle.dumps((vm, wanted)))
    command = [sys.executable, "-m", "tests.fakes.doomed_agent", str(home), str(pickled), point]
    ended = subprocess.run(command, cwd=CHECKOUT, check=False)
    assert ended.returncode == -signal.SIGKILL


if __name__ == "__main__":
    asyncio.run(
        main(Path(sys.argv[1]), *pickle.loads(Path(sys.argv[2]).read_bytes()), sys.argv[3])
    )
