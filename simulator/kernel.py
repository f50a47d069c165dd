"""The kernel of a simulated host, a process: `python -m simulator.kernel DIRECTORY`.

Takes what is written to the tree's files: a bind moves the driver's link, and NVML sees a GPU as
long as the nvidia driver has it; a reset takes its time, all ones meanwhile. Ends with SIGTERM, or
when the directory goes.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

from agent.host.files import write_atomic
from simulator.machine import SimulatedMachine
from simulator.pci_kernel import PciKernel
from simulator.pci_pipes import served
from simulator.profiles import DRIVER

RESET_S = 0.3
_LOOK_EVERY_S = 1.0


def run(machine: SimulatedMachine, stop: threading.Event) -> None:
    """Until told to stop."""
    profile = machine.profile
    assert profile is not None, f"{machine.directory} has no simulated host"
    tree, nvml = machine.scenario()
    says = {str(bdf): told for bdf, told in profile.gpus(tree)}
    kernel = PciKernel(tree, reset_s=RESET_S)

    def tell(bdf: str) -> None:
        link = tree.devices / bdf / "driver"
        if bdf in says and link.is_symlink() and link.readlink().name == DRIVER:
            nvml.gpu(bdf, **says[bdf])
        else:
            nvml.lost(bdf)

    nvml.driver(driver_version="580.95.05 (simulated)")
    for bdf in says:
        tell(bdf)
    kernel.moved = tell
    with served(kernel):
        write_atomic(machine.pid_file, f"{os.getpid()}\n".encode(), mode=0o644)
        while machine.profile is not None and not stop.wait(_LOOK_EVERY_S):
            pass


def main() -> None:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    run(SimulatedMachine(Path(sys.argv[1])), stop)


if __name__ == "__main__":
    main()
