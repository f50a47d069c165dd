"""A cage as properties of a unit. Pure.

What no unit does, the program in it does before it becomes QEMU (`vm_start.py`): the filter that
forbids to execute, and that nothing can look into the process. For the latter it needs two
capabilities for a moment, which it gives away for ever before QEMU is executed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from agent.enclaves import unit_stop, vm_start
from agent.enclaves.cage import Cage
from agent.enclaves.cage_filter import PROGRAM_FD
from agent.enclaves.cage_order import LOADER, ROOT_NAMES

_JOURNAL = "/run/systemd/journal/stdout"
_ALWAYS = (
    "PrivateDevices=yes",
    "PrivateIPC=yes",
    "PrivateMounts=yes",
    "ProcSubset=pid",
    "ProtectClock=yes",
    "ProtectHome=yes",
    # What systemd gives every unit to write to: of it nothing is needed, and some is on a disk.
    "InaccessiblePaths=-/tmp -/var/tmp",
    "LimitMSGQUEUE=0",
    "TemporaryFileSystem=/run:ro,mode=0755,size=64k /dev/shm:ro /dev/hugepages:ro",
    "KeyringMode=private",
    "RemoveIPC=yes",
    "CoredumpFilter=0",
    # Memory that is written and executed is TCG's translated code.
    "CapabilityBoundingSet=CAP_SETGID CAP_SETPCAP",
    "AmbientCapabilities=CAP_SETGID CAP_SETPCAP",
    "SystemCallFilter=@system-service",
    "SystemCallFilter=~@privileged @resources @keyring",
    # Where memory comes from (a NUMA node); the two groups of the moment of execution, and the end
    # of the capabilities for that.
    "SystemCallFilter=mbind set_mempolicy get_mempolicy setresgid capset",
    "SystemCallErrorNumber=EPERM",
    # One more than QEMU's own: by that one it is executed.
    f"LimitNOFILE={PROGRAM_FD + 1}",
)


def caged(cage: Cage, *, root: Path, devices: Sequence[Path]) -> Iterator[str]:
    """As `systemd-run --property` takes them; of what is told twice, the last counts.

    `root`: an empty directory. systemd makes places in it for what is bound there.
    """
    yield from _ALWAYS
    yield f"RootDirectory={root}"
    trees = dict.fromkeys([*map(str, cage.trees), *_of_python(), *ROOT_NAMES, *LOADER])
    for path in trees:
        yield f"BindReadOnlyPaths=-{path}"
    yield "BindReadOnlyPaths=/sys" if cage.sysfs else "InaccessiblePaths=-/sys"
    for opened in (*cage.sockets, *devices):
        yield f"BindPaths=-{opened}"
    yield f"PrivateNetwork={'yes' if cage.own_network else 'no'}"
    yield f"MemoryMax={cage.memory_max_mib}M"
    yield f"TasksMax={cage.tasks_max}"
    yield f"RestrictAddressFamilies={' '.join(('AF_UNIX', *cage.families))}"


def _of_python() -> tuple[str, ...]:
    """What runs the programs that become QEMU and stop it, these, and where the latter tells."""
    elsewhere = () if Path(sys.base_prefix) == Path("/usr") else (sys.base_prefix,)
    programs = (str(Path(one).resolve()) for one in (vm_start.__file__, unit_stop.__file__))
    return (*elsewhere, *programs, _JOURNAL)
