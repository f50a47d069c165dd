"""What the host itself has: memory, processors, disk, listening sockets, ids for guests of a TEE.

Invariant: a number is what the kernel says now, never remembered. Where the agent lives in a
container (a control group is its root) the container's limits are the host.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import msgspec

from agent.errors import AgentError
from agent.host.listener_owners import ListenerOwners
from agent.inventory.listeners import read_listeners
from agent.inventory.local_addresses import read_local_addresses
from agent.inventory.tee_ids import read_tee_ids
from agent.model.addresses import HostAddresses
from agent.model.ids import EnclaveId
from agent.model.inventory import TeeIds
from agent.model.resources import Listen


class InventoryError(AgentError):
    """The machine did not say what it has; capacity is not known, so nothing can be admitted."""

    @property
    def code(self) -> str:
        return "inventory_unavailable"


class HostResources(msgspec.Struct, frozen=True, kw_only=True):
    """One look at the host. `resident_mib`: what each enclave's QEMU takes of MemAvailable now.

    `programs`: whose the listeners are, as far as that can be told. `addresses`: the host's own;
    None where the kernel does not say.
    """

    memory_mib: int
    mem_available_mib: int | None
    vcpus: int
    disk_free_mib: int
    resident_mib: Mapping[EnclaveId, int]
    foreign_listeners: tuple[Listen, ...]
    programs: Mapping[Listen, str] = {}
    addresses: HostAddresses | None = None
    tee_ids: tuple[TeeIds, ...] = ()


class HostProbe:
    """Looks at the host. Blocks for a few milliseconds: call it off the event loop."""

    def __init__(
        self,
        disk: Path,
        *,
        proc_root: Path = Path("/proc"),
        cgroup_root: Path = Path("/sys/fs/cgroup"),
        vcpus: int | None = None,
    ) -> None:
        """`disk` lies on the file system that enclaves write to; `vcpus` replaces the count."""
        self._disk = disk
        self._proc = proc_root
        self._cgroup = cgroup_root
        self._vcpus = vcpus
        self._owners = ListenerOwners()

    def read(self, pids: Mapping[EnclaveId, int]) -> HostResources:
        """Look now. `pids`: the QEMU of each running enclave. Raises InventoryError."""
        try:
            memory, available = memory_mib(self._proc, self._cgroup)
            return HostResources(
                memory_mib=memory,
                mem_available_mib=available,
                vcpus=self._vcpus or count_cpus(self._cgroup),
                disk_free_mib=shutil.disk_usage(self._disk).free >> 20,
                resident_mib={e: resident_mib(pid, self._proc) for e, pid in pids.items()},
                foreign_listeners=read_listeners(self._proc),
                programs=self._programs(),
                addresses=_addresses(),
                tee_ids=read_tee_ids(self._cgroup),
            )
        except (OSError, ValueError, KeyError) as error:
            raise InventoryError("the host's resources cannot be read") from error

    def _programs(self) -> Mapping[Listen, str]:
        try:
            return self._owners.read()
        except OSError:  # a kernel without tcp_diag
            return {}


def _addresses() -> HostAddresses | None:
    try:
        return read_local_addresses()
    except OSError:  # a sandbox without netlink
        return None


def resident_mib(pid: int, proc_root: Path = Path("/proc")) -> int:
    """Memory of a process that comes back when it ends: anonymous and shared, without file pages.

    Read from `status`, whose counters cost nothing; `smaps_rollup` walks every page of the guest.
    Pages of a guest_memfd (SEV-SNP) are not in it, so that such a guest counts as not resident.
    A process that is gone has none.
    """
    try:
        fields = _key_values((proc_root / str(pid) / "status").read_text())
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return (fields.get("RssAnon", 0) + fields.get("RssShmem", 0)) >> 10


def memory_mib(proc_root: Path, cgroup_root: Path) -> tuple[int, int | None]:
    """(total, available): the machine's, or the container's if that is less."""
    fields = _key_values((proc_root / "meminfo").read_text())
    total, available = fields["MemTotal"] >> 10, fields.get("MemAvailable")
    available_mib = None if available is None else available >> 10
    limit = _read_limit(cgroup_root / "memory.max")
    if limit is None or limit >> 20 >= total:
        return total, available_mib
    used = _read_limit(cgroup_root / "memory.current") or 0
    stat = _key_values((cgroup_root / "memory.stat").read_text())
    left = max(0, limit - used + stat.get("inactive_file", 0)) >> 20
    return limit >> 20, left if available_mib is None else min(left, available_mib)


def count_cpus(cgroup_root: Path) -> int:
    """Processors that we may run on, less where the container has a quota of time."""
    allowed = len(os.sched_getaffinity(0))
    try:
        quota, period = (cgroup_root / "cpu.max").read_text().split()
    except (FileNotFoundError, ValueError):
        return allowed
    return allowed if quota == "max" else max(1, min(allowed, int(quota) // int(period)))


def _read_limit(path: Path) -> int | None:
    """A control group's number of bytes; None for `max` and where there is no such group."""
    try:
        text = path.read_text().strip()
    except FileNotFoundError:
        return None
    return None if text == "max" else int(text)


def _key_values(text: str) -> dict[str, int]:
    """`Name: 12 kB` or `name 12` a line; lines that are not numbers are left out."""
    found = {}
    for line in text.splitlines():
        name, _, rest = line.replace(":", " ", 1).partition(" ")
        words = rest.split()
        if words and words[0].isascii() and words[0].isdigit():
            found[name] = int(words[0])
    return found
