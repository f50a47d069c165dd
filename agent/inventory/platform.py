"""The host around the GPUs: NUMA nodes, huge pages, TEE ids, what the kernel has switched on.

Invariant: a look never fails; what this kernel does not tell is unknown.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from agent.inventory.host import count_cpus, memory_mib
from agent.inventory.sysfs import list_names, read_int, read_text, reads_yes
from agent.inventory.tee_ids import read_tee_ids
from agent.model.inventory import HostInventory, Hugepages, NumaNode

SEV_SNP_SWITCH = "module/kvm_amd/parameters/sev_snp"
TDX_SWITCH = "module/kvm_intel/parameters/tdx"

_NODE = re.compile(r"node([0-9]+)")
_PAGES = re.compile(r"hugepages-([0-9]+)kB")


class PlatformProbe:
    """Looks at the host below injectable roots. Blocks for about a millisecond."""

    def __init__(
        self,
        *,
        disk: Path,
        sysfs_root: Path = Path("/sys"),
        cgroup_root: Path = Path("/sys/fs/cgroup"),
        proc_root: Path = Path("/proc"),
        dev_root: Path = Path("/dev"),
        vcpus: int | None = None,
    ) -> None:
        """`disk` lies on the file system that enclaves write to; `vcpus` replaces the count."""
        self._disk = disk
        self._sysfs = sysfs_root
        self._cgroup = cgroup_root
        self._proc = proc_root
        self._dev = dev_root
        self._vcpus = vcpus

    def read(self) -> HostInventory:
        """Look now."""
        memory, available = self._memory()
        return HostInventory(
            memory_mib=memory,
            mem_available_mib=available,
            vcpus=self._vcpus or self._count(),
            disk_free_mib=self._disk_free(),
            numa_nodes=tuple(self._nodes()),
            hugepages=tuple(self._hugepages()),
            tee_ids=read_tee_ids(self._cgroup),
            sev_snp=reads_yes(f"{self._sysfs}/{SEV_SNP_SWITCH}"),
            tdx=reads_yes(f"{self._sysfs}/{TDX_SWITCH}"),
            kvm=(self._dev / "kvm").exists(),
            sev=(self._dev / "sev").exists(),
            iommufd=(self._dev / "iommu").exists(),
            vfio_nodes=_vfio_nodes(read_text(f"{self._proc}/devices")),
            iommu_groups=len(list_names(f"{self._sysfs}/kernel/iommu_groups")),
        )

    def _memory(self) -> tuple[int | None, int | None]:
        try:
            return memory_mib(self._proc, self._cgroup)
        except (OSError, ValueError, KeyError):
            return None, None

    def _count(self) -> int | None:
        try:
            return count_cpus(self._cgroup)
        except (OSError, ValueError):
            return None

    def _disk_free(self) -> int | None:
        try:
            return shutil.disk_usage(self._disk).free >> 20
        except OSError:
            return None

    def _nodes(self) -> Iterator[NumaNode]:
        folder = f"{self._sysfs}/devices/system/node"
        numbers = [int(m[1]) for name in list_names(folder) if (m := _NODE.fullmatch(name))]
        for number in sorted(numbers):
            path = f"{folder}/node{number}"
            distances = (read_text(f"{path}/distance") or "").split()
            yield NumaNode(
                node=number,
                memory_mib=_node_memory(read_text(f"{path}/meminfo")),
                cpus=read_text(f"{path}/cpulist"),
                distances=tuple(int(each) for each in distances if each.isdigit()),
            )

    def _hugepages(self) -> Iterator[Hugepages]:
        folder = f"{self._sysfs}/kernel/mm/hugepages"
        sizes = [int(m[1]) for name in list_names(folder) if (m := _PAGES.fullmatch(name))]
        for size in sorted(sizes):
            path = f"{folder}/hugepages-{size}kB"
            total = read_int(f"{path}/nr_hugepages")
            yield Hugepages(size_kib=size, total=total, free=read_int(f"{path}/free_hugepages"))


def _vfio_nodes(devices: str | None) -> bool | None:
    """From /proc/devices: `vfio-dev` where files of devices are made, beside `vfio` of groups.

    Neither is there before vfio is loaded.
    """
    kinds = set((devices or "").split())
    return "vfio-dev" in kinds if kinds & {"vfio", "vfio-dev"} else None


def _node_memory(text: str | None) -> int | None:
    """`Node 0 MemTotal:  527988736 kB`."""
    found = re.search(r"MemTotal:\s+([0-9]+) kB", text or "")
    return int(found[1]) >> 10 if found else None
