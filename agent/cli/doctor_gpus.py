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
from agent.cli.doctor_platform import hugepage_lines, numa_lines, tee_id_lines

if TYPE_CHECKING:
    from agent.config import Config
    from agent.inventory.nvml.values import NvmlLook
    from agent.model.inventory import HostInventory
    from agent.model.pci import PciFunction

_CONFIDENTIAL = ("sev-snp", "tdx")


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
        proc_root=proc_root,
    ).read()
    lines = [*tee_id_lines(platform), *hugepage_lines(platform)]
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
        *_vfio_nodes(functions, platform),
        _kernel_log(dev_root / "kmsg"),
        _tools(host.gpu_tools),
        _nvml(gpus, nvml),
        _aer(gpus),
        *_links(functions),
        *_unfit(config, gpus, platform),
        *numa_lines(gpus, platform),
        *_health(functions, nvml),
        *use_lines(config, gpus, nvml, proc_root),
        *lines,
    ]


def _board(functions: tuple[PciFunction, ...]) -> Line:
    from agent.model.gpu import Gpu
    from agent.model.gpu_boards import gpu_boards
    from agent.model.gpu_models import part_of

    gpus = [one for one in functions if one.kind == "gpu"]
    names = sorted({part_of(one.device).name or "of an unknown kind" for one in gpus})
    detail = f"{len(gpus)}: {', '.join(names)}; {len(functions) - len(gpus)} NVSwitches"
    boards = gpu_boards(
        Gpu(bdf=one.bdf, device=one.device, is_switch=one.kind == "switch") for one in functions
    )
    missing = [board.incomplete for board in boards if board.incomplete]
    if missing:
        mend = "see the kernel log and the BMC for the one that is missing; reboot the host"
        return Line("gpus", "warn", f"{detail}: {'; '.join(missing)}", mend)
    return Line("gpus", "ok", detail)


def _links(functions: tuple[PciFunction, ...]) -> Iterator[Line]:
    """What a link does not tell hides what would be wrong with it."""
    from agent.model.pci_link import unknown_link

    unknown = [one.bdf for one in functions if unknown_link(one.link)]
    if unknown:
        yield Line(
            "pcie links",
            "warn",
            f"the lanes of {', '.join(unknown)} are not told: lost ones stay unseen",
            "none, if it hangs on no PCIe port; else see the kernel log of its port",
        )


def _unfit(config: Config, gpus: list[PciFunction], platform: HostInventory) -> Iterator[Line]:
    """What no confidential guest can have, where guests are confidential."""
    from agent.model.gpu_models import Confidential, part_of

    auto = config.tee == "auto" and bool(platform.sev_snp or platform.tdx)
    if not auto and config.tee not in _CONFIDENTIAL:
        return
    for one in gpus:
        part = part_of(one.device)
        if part.confidential is Confidential.NEVER:
            name = part.name or f"a part {one.device:#06x}" if one.device else "it"
            yield Line(
                f"gpu {one.bdf} confidential",
                "warn",
                f"{name} cannot be confidential: no guest of this host is given it",
                "put it into a host with tee: none, or use a Hopper or Blackwell part",
            )


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
    from agent.model.iommu_group import judge_group

    told = set()
    for gpu in gpus:
        group = judge_group(gpu.bdf, gpu.iommu_group, gpu.group)
        if gpu.iommu_group in told or not (group.held or group.devices):
            continue
        told.add(gpu.iommu_group)
        if group.held:
            detail, mend = f"{gpu.bdf} {group.fault}", group.mend
        else:
            others = ", ".join(group.devices)
            detail = f"{gpu.bdf} shares it with {others}: they can only go together"
            mend = "turn ACS on in the firmware, or use another slot"
        yield Line(f"iommu group {gpu.iommu_group}", "error", detail, mend)
    if not told:
        yield Line("iommu groups", "ok", "nothing of the host's is in the group of any")


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


def _vfio_nodes(functions: tuple[PciFunction, ...], platform: HostInventory) -> Iterator[Line]:
    """Through which iommufd reaches them; nothing of what no vfio driver has yet is known."""
    from agent.model.vfio_node import NODE_MEND, missing_node

    without = [
        one.bdf
        for one in functions
        if missing_node(one.driver, one.vfio_device, made_here=platform.vfio_nodes)
    ]
    if without:
        yield Line(
            "vfio devices",
            "error",
            f"this kernel makes no file in /dev/vfio/devices for {', '.join(without)}: "
            "confidential guests cannot have them",
            NODE_MEND,
        )
    elif platform.vfio_nodes or any(one.vfio_device for one in functions):
        yield Line("vfio devices", "ok", "each has a file in /dev/vfio/devices")


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
    from agent.model.pci_drivers import NVIDIA

    driven = frozenset(one.bdf for one in gpus if one.driver == NVIDIA)
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


def _health(functions: tuple[PciFunction, ...], look: NvmlLook | None) -> Iterator[Line]:
    """One look: what takes several to be believed is shown as well, here a person reads it."""
    from agent.inventory.findings import find, sightings
    from agent.inventory.nvml.values import NvmlLook
    from agent.inventory.problems import MENDS
    from agent.model.gpu import HealthAction, Severity

    every = sightings({one.bdf: one for one in functions}, look or NvmlLook(), {})
    well = True
    for one in functions:
        found = [each for each in find(every[one.bdf]) if each.severity is not Severity.INFO]
        if not found:
            continue
        well = False
        is_error = any(each.severity is Severity.ERROR for each in found)
        yield Line(
            f"gpu {one.bdf}",
            "error" if is_error else "warn",
            "; ".join(each.detail for each in found),
            MENDS[max((each.action for each in found), key=list(HealthAction).index)],
        )
    if well:
        yield Line("gpu health", "ok", "nothing is wrong with any")
