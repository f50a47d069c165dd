"""The doctor's lines about what surrounds the GPUs: sockets, ids for guests, huge pages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from agent.cli.doctor_line import Line

if TYPE_CHECKING:
    from agent.model.inventory import HostInventory
    from agent.model.pci import PciFunction

_MANY_PAGES_MIB = 1024


def numa_lines(gpus: list[PciFunction], platform: HostInventory) -> Iterator[Line]:
    if len(platform.numa_nodes) < 2:
        return
    lost = [one.bdf for one in gpus if one.numa_node is None]
    if lost:
        yield Line(
            "numa",
            "warn",
            f"the node of {', '.join(lost)} is not known: groups may span both sockets",
            "turn NUMA (SRAT, proximity of PCI) on in the firmware",
        )
    else:
        yield Line(
            "numa", "ok", f"{len(platform.numa_nodes)} nodes; the node of each GPU is known"
        )


def tee_id_lines(platform: HostInventory) -> Iterator[Line]:
    on = [name for name, is_on in (("sev-snp", platform.sev_snp), ("tdx", platform.tdx)) if is_on]
    told = {ids.kind: ids for ids in platform.tee_ids}
    for kind in on:
        ids = told.get(kind)
        if ids is None:
            yield Line(
                "tee ids",
                "warn",
                f"the kernel does not tell how many {kind} guests there may be",
                "mount the misc controller (cgroup v2); for SNP give SEV-ES ids in the firmware",
            )
        elif ids.used is not None and ids.total is not None and ids.used >= ids.total:
            yield Line(
                "tee ids",
                "warn",
                f"all {ids.total} ids for {kind} guests are in use",
                "stop a guest, or give more ids to it in the firmware (minimum SEV ASID)",
            )
        else:
            yield Line("tee ids", "ok", f"{kind}: {ids.used} of {ids.total} in use")


def hugepage_lines(platform: HostInventory) -> Iterator[Line]:
    kept_mib = sum((one.total or 0) * one.size_kib for one in platform.hugepages) >> 10
    if kept_mib >= _MANY_PAGES_MIB:
        yield Line(
            "hugepages",
            "warn",
            f"{kept_mib} MiB are set aside as huge pages, which confidential guests cannot use",
            "vm.nr_hugepages=0, and no hugepages= on the kernel's command line",
        )
