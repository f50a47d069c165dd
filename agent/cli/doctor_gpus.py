"""The doctor's lines about GPUs: what keeps them from being given to enclaves, and the mend.

It looks at the bus and the kernel's own files, and asks NVML in a process under a deadline.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from agent.cli.doctor_gpu_use import use_lines
from agent.cli.doctor_line import Line

if TYPE_CHECKING:
    from agent.config import Config
    from agent.inventory.nvml.values import NvmlLook
    from agent.model.inventory import HostInventory
    from agent.model.pci import PciFunction

_HGX = 8
_ITS_OWN = frozenset({"audio", "bridge"})  # what may share a GPU's IOMMU group
_MANY_PAGES_MIB = 1024


def gpu_lines(
    config: Config, dev_root: Path = Path("/dev"), proc_root: Path = Path("/proc")
) -> list[Line]:
    """All of them. Raises nothing for what is wrong with the host."""
    from agent.inventory.host import InventoryError
    from agent.inventory.pci import PciReader
    from agent.inventory.platform import PlatformProbe

    host = config.host
    try:
        functions = PciReader(host.sysfs_root).read()
    except InventoryError as error:
        return [Line("gpus", "error", str(error), "set host.sysfs_root to where sysfs is mounted")]
    platform = PlatformProbe(
        disk=config.state_dir,
        sysfs_root=host.sysfs_root,
        cgroup_root=host.cgroup_root,
        dev_root=dev_root,
    ).read()
    lines = [*_tee_ids(platform), *_hugepages(platform)]
    gpus = [one for one in functions if one.kind == "gpu"]
    if not gpus:
        return [Line("gpus", "ok", "none; enclaves run without"), *lines]
    nvml = asyncio.run(_ask_nvml(config, gpus))
    return [
        _board(functions),
        _iommu(platform),
        *_groups(gpus),
        _vfio(host.sysfs_root),
        _iommufd(platform),
        _kernel_log(dev_root / "kmsg"),
        _tools(host.gpu_tools),
        _nvml(gpus, nvml),
        _aer(gpus),
        *_numa(gpus, platform),
        *_health(functions, nvml),
        *use_lines(config, gpus, nvml, proc_root),
        *lines,
    ]


def _board(functions: tuple[PciFunction, ...]) -> Line:
    from agent.model.gpu_models import GPU_MODELS, Form

    gpus = [one for one in functions if one.kind == "gpu"]
    models = [GPU_MODELS.get(one.device or 0) for one in gpus]
    names = sorted({model.name if model else "of an unknown kind" for model in models})
    detail = f"{len(gpus)}: {', '.join(names)}; {len(functions) - len(gpus)} NVSwitches"
    on_board = sum(1 for model in models if model and model.form is Form.HGX)
    if on_board and on_board != _HGX:
        mend = "see the kernel log and the BMC for the one that is missing; reboot the host"
        return Line("gpus", "warn", f"{detail}: a whole board has {_HGX}", mend)
    return Line("gpus", "ok", detail)


def _iommu(platform: HostInventory) -> Line:
    if platform.iommu_groups:
        return Line("iommu", "ok", f"{platform.iommu_groups} groups")
    return Line(
        "iommu",
        "error",
        "no IOMMU is in use: no GPU can be given to an enclave",
        "turn VT-d or AMD-Vi on in the firmware; boot with intel_iommu=on or amd_iommu=on",
    )


def _groups(gpus: list[PciFunction]) -> Iterator[Line]:
    shared = False
    for gpu in gpus:
        others = [one.bdf for one in gpu.group if one.bdf != gpu.bdf and one.kind not in _ITS_OWN]
        if others:
            shared = True
            yield Line(
                f"iommu group {gpu.iommu_group}",
                "error",
                f"{gpu.bdf} shares it with {', '.join(others)}: they can only go together",
                "turn ACS on in the firmware, or use another slot",
            )
    if not shared:
        yield Line("iommu groups", "ok", "each GPU has its own")


def _vfio(sysfs_root: Path) -> Line:
    if (sysfs_root / "bus/pci/drivers/vfio-pci").is_dir():
        return Line("vfio", "ok", "vfio-pci is loaded")
    return Line("vfio", "error", "vfio-pci is not loaded", "modprobe vfio-pci")


def _iommufd(platform: HostInventory) -> Line:
    if platform.iommufd:
        return Line("iommufd", "ok", "/dev/iommu is there")
    return Line(
        "iommufd",
        "error",
        "/dev/iommu is not there; confidential guests need it for GPUs",
        "modprobe iommufd (Linux 6.6 or newer)",
    )


def _kernel_log(path: Path) -> Line:
    if os.access(path, os.R_OK):
        return Line("kernel log", "ok", f"{path} can be read")
    return Line(
        "kernel log",
        "warn",
        f"{path} cannot be read: what the kernel says of GPUs in guests stays unheard",
        "run as root, or give CAP_SYSLOG and the device",
    )


def _tools(program: str) -> Line:
    found = shutil.which(program)
    if found:
        return Line("gpu tools", "ok", found)
    return Line(
        "gpu tools",
        "warn",
        f"{program} is not there; the mode of GPUs can be neither seen nor changed",
        "install NVIDIA's gpu-admin-tools, or set host.gpu_tools",
    )


def _nvml(gpus: list[PciFunction], look: NvmlLook | None) -> Line:
    if look is None:
        return Line("nvml", "ok", "not asked: the nvidia driver has no GPU")
    if look.trouble is not None:
        mend = "see the kernel log; driver and library must be of one version (host.nvml_library)"
        return Line("nvml", "warn", f"{look.trouble.detail}; GPUs are seen by PCI alone", mend)
    return Line("nvml", "ok", f"driver {look.driver_version}; {len(look.gpus)} of {len(gpus)}")


async def _ask_nvml(config: Config, gpus: list[PciFunction]) -> NvmlLook | None:
    from agent.host.clock import RealClock
    from agent.inventory.nvml.probe import NvmlProbe

    driven = frozenset(one.bdf for one in gpus if one.driver == "nvidia")
    if not driven:
        return None
    probe = NvmlProbe(config.host.nvml_library, RealClock(), on_event=lambda _: None)
    try:
        return await probe.look(driven)
    finally:
        await probe.close()


def _aer(gpus: list[PciFunction]) -> Line:
    blind = [one.bdf for one in gpus if one.aer.fatal is None]
    if not blind:
        return Line("pcie errors", "ok", "counted by the kernel for every GPU")
    return Line(
        "pcie errors",
        "warn",
        f"not counted for {', '.join(blind)}: errors of GPUs in guests stay unseen",
        "let the firmware hand AER to the kernel (pcie_ports=native)",
    )


def _numa(gpus: list[PciFunction], platform: HostInventory) -> Iterator[Line]:
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


def _health(functions: tuple[PciFunction, ...], look: NvmlLook | None) -> Iterator[Line]:
    """One look: what takes several to be believed is shown as well, here a person reads it."""
    from agent.inventory.findings import Sighting, find
    from agent.inventory.problems import MENDS
    from agent.model.gpu import Severity

    seen = {gpu.bdf: gpu for gpu in look.gpus} if look else {}
    works = look is not None and look.trouble is None
    well = True
    for one in functions:
        for finding in find(Sighting(one, seen.get(one.bdf), nvml_works=works)):
            if finding.severity is Severity.INFO:
                continue
            well = False
            state = "error" if finding.severity is Severity.ERROR else "warn"
            yield Line(f"gpu {one.bdf}", state, finding.detail, MENDS[finding.action])
    if well:
        yield Line("gpu health", "ok", "nothing is wrong with any")


def _tee_ids(platform: HostInventory) -> Iterator[Line]:
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


def _hugepages(platform: HostInventory) -> Iterator[Line]:
    kept_mib = sum((one.total or 0) * one.size_kib for one in platform.hugepages) >> 10
    if kept_mib >= _MANY_PAGES_MIB:
        yield Line(
            "hugepages",
            "warn",
            f"{kept_mib} MiB are set aside as huge pages, which confidential guests cannot use",
            "vm.nr_hugepages=0, and no hugepages= on the kernel's command line",
        )
