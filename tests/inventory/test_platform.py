"""What is read of the host around its GPUs, from trees and from this machine itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.inventory.platform import PlatformProbe
from agent.inventory.tee_ids import read_tee_ids
from agent.model.inventory import HostInventory, Hugepages, NumaNode, TeeIds


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")


def probe(root: Path) -> HostInventory:
    return PlatformProbe(
        disk=root,
        sysfs_root=root / "sys",
        cgroup_root=root / "cgroup",
        proc_root=root / "proc",
        dev_root=root / "dev",
    ).read()


def test_a_host_tells_what_it_has(tmp_path: Path) -> None:
    node, pages = "sys/devices/system/node", "sys/kernel/mm/hugepages/hugepages-2048kB"
    write(
        tmp_path,
        {
            "proc/meminfo": "MemTotal: 2097152 kB\nMemAvailable: 1048576 kB",
            f"{node}/node0/cpulist": "0-47,96-143",
            f"{node}/node0/meminfo": "Node 0 MemTotal:       1048576 kB\nNode 0 MemFree: 1 kB",
            f"{node}/node0/distance": "10 32",
            f"{node}/node1/cpulist": "48-95",
            f"{node}/node1/distance": "32 10",
            f"{node}/online": "0-1",
            f"{pages}/nr_hugepages": "512",
            f"{pages}/free_hugepages": "500",
            "sys/module/kvm_amd/parameters/sev_snp": "Y",
            "sys/module/kvm_intel/parameters/tdx": "N",
            "sys/kernel/iommu_groups/0/type": "DMA",
            "sys/kernel/iommu_groups/1/type": "DMA",
            "cgroup/misc.capacity": "sev 410\nsev_es 99",
            "cgroup/misc.current": "sev 0\nsev_es 4",
            "dev/kvm": "",
            "dev/sev": "",
            "dev/iommu": "",
        },
    )
    seen = probe(tmp_path)
    assert (seen.memory_mib, seen.mem_available_mib) == (2048, 1024)
    assert seen.numa_nodes == (
        NumaNode(node=0, memory_mib=1024, cpus="0-47,96-143", distances=(10, 32)),
        NumaNode(node=1, memory_mib=None, cpus="48-95", distances=(32, 10)),
    )
    assert seen.hugepages == (Hugepages(size_kib=2048, total=512, free=500),)
    assert seen.tee_ids == (TeeIds(kind="sev-snp", total=99, used=4),)
    assert (seen.sev_snp, seen.tdx) == (True, False)
    assert (seen.kvm, seen.sev, seen.iommufd, seen.iommu_groups) == (True, True, True, 2)


def test_what_a_kernel_does_not_tell_is_unknown(tmp_path: Path) -> None:
    seen = probe(tmp_path)
    assert (seen.memory_mib, seen.sev_snp, seen.tdx, seen.tee_ids) == (None, None, None, ())
    assert (seen.numa_nodes, seen.hugepages, seen.iommu_groups, seen.kvm) == ((), (), 0, False)


@pytest.mark.parametrize(
    ("capacity", "current", "ids"),
    [
        ("sev_es 99", None, (TeeIds(kind="sev-snp", total=99, used=None),)),
        ("sev 410\nsev_es 0", "sev_es 0", ()),
        ("tdx 63", "tdx 63", (TeeIds(kind="tdx", total=63, used=63),)),
        ("sev_snp 7", "sev_snp 1", ()),  # there is no such row: SNP is charged to sev_es
        ("nonsense\ntdx many", "tdx 1", ()),
        (None, None, ()),
    ],
)
def test_tee_ids_are_those_of_the_misc_controller(
    tmp_path: Path, capacity: str | None, current: str | None, ids: tuple[TeeIds, ...]
) -> None:
    told = {"misc.capacity": capacity, "misc.current": current}
    write(tmp_path, {name: text for name, text in told.items() if text is not None})
    assert read_tee_ids(tmp_path) == ids


def test_this_very_host_can_be_looked_at(tmp_path: Path) -> None:
    seen = PlatformProbe(disk=tmp_path).read()
    assert seen.vcpus
    assert seen.memory_mib
    assert seen.disk_free_mib
