"""What must hold on the host before a confidential enclave is launched, each with its mend. Pure.

Invariant: everything that is wrong is told at once, before anything is stopped or booted; what is
not known counts as wrong, since a launch that fails costs an outage.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from agent.config import Tee
from agent.enclaves.pci_layout import VIRTIO_PCI, RootPorts
from agent.enclaves.root_ports import root_ports_for
from agent.errors import AgentError
from agent.model.gpu import Gpu
from agent.model.ids import Bdf
from agent.model.inventory import HostInventory
from agent.model.iommu_group import judge_group
from agent.model.pci import PciKind
from agent.model.pci_bars import SPACE_MEND, missing_space
from agent.model.pci_drivers import is_vfio
from agent.model.vfio_node import NODE_MEND, missing_node

OVERHEAD_MIB = 512  # of QEMU itself beside its guest's memory


@dataclass(frozen=True, slots=True)
class Lack:
    """One thing that is wrong, and what mends it."""

    code: str
    detail: str
    mend: str


class PreflightError(AgentError):
    """The host is not ready for a launch. Its code is the first lack's."""

    def __init__(self, lacks: Sequence[Lack]) -> None:
        super().__init__("; ".join(f"{one.detail} ({one.mend})" for one in lacks))
        self.lacks = tuple(lacks)

    @property
    def code(self) -> str:
        return self.lacks[0].code


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What a launch takes. `inherits`: memory and TEE id are another's until that is stopped.

    `prepared`: its devices should be prepared by now. `data_disks`: as many models as it has;
    `ports_by_board`: see `Enclave`.
    """

    tee: Tee
    memory_mib: int
    devices: tuple[Bdf, ...] = ()
    inherits: bool = False
    prepared: bool = False
    data_disks: int = 0
    ports_by_board: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What the host has now. `devices`: those needed, as far as they are there.

    `quotes_fault`, `firmware_fault`: why a trust domain could not be quoted, or there is no
    firmware; None if all is well. `unable`: what QEMU cannot do. `cage_faults`: what is not to be
    had in a cage, looked for from inside of one.
    """

    host: HostInventory
    reserve_mib: int
    devices: dict[Bdf, Gpu] = field(default_factory=dict)
    unable: tuple[str, ...] = ()
    memory_lockable: bool = True
    quotes_fault: str | None = None
    firmware_fault: str | None = None
    cage_faults: tuple[str, ...] = ()


def lacks_of(need: Need, ground: Ground) -> list[Lack]:
    """Everything that keeps this launch from being made."""
    return [
        *_tee(need, ground.host),
        *_qemu(ground),
        *_firmware(ground),
        *([] if need.inherits else [*_tee_id(need, ground.host), *_memory(need, ground)]),
        *_devices(need, ground),
        *_places(need, ground),
        *_quotes(ground),
        *_cage(ground),
    ]


def _tee(need: Need, host: HostInventory) -> Iterator[Lack]:
    code = "tee_unavailable"
    if not host.kvm:
        yield Lack(code, "/dev/kvm is not there", "enable virtualisation and load KVM's module")
    if need.tee is Tee.SEV_SNP:
        if host.sev_snp is not True:
            mend = "enable SEV-SNP in the firmware, and boot with kvm_amd.sev_snp=1"
            yield Lack(code, "SEV-SNP is not on in this kernel", mend)
        if not host.sev:
            yield Lack(code, "/dev/sev is not there", "modprobe ccp; see the kernel's log")
    if need.tee is Tee.TDX and host.tdx is not True:
        mend = "enable TDX in the firmware, and boot with kvm_intel.tdx=1"
        yield Lack(code, "TDX is not on in this kernel", mend)


def _qemu(ground: Ground) -> Iterator[Lack]:
    for one in ground.unable:
        yield Lack("qemu_unfit", f"QEMU: {one}", "install a newer QEMU, or set qemu.binary")


def _firmware(ground: Ground) -> Iterator[Lack]:
    if ground.firmware_fault is not None:
        mend = "put it there; docs/hardware.md says which"
        yield Lack("firmware_missing", ground.firmware_fault, mend)


def _tee_id(need: Need, host: HostInventory) -> Iterator[Lack]:
    ids = next((one for one in host.tee_ids if one.kind == need.tee), None)
    if ids is None or ids.total is None or ids.used is None:
        mend = "the kernel's misc controller must be on, at the root of the control groups"
        yield Lack("tee_ids_exhausted", f"how many ids of {need.tee} are free is not known", mend)
    elif ids.used >= ids.total:
        detail = f"all {ids.total} ids of {need.tee} are in use"
        yield Lack(
            "tee_ids_exhausted", detail, "stop an enclave, or give more ids in the firmware"
        )


def _memory(need: Need, ground: Ground) -> Iterator[Lack]:
    available = ground.host.mem_available_mib
    needed = need.memory_mib + OVERHEAD_MIB + ground.reserve_mib
    if available is None or available < needed:
        has = "not known" if available is None else f"{available} MiB"
        detail = f"{needed} MiB are needed with the reserve, available: {has}"
        yield Lack("memory_insufficient", detail, "stop something, or lower reserve.memory_mib")


def _devices(need: Need, ground: Ground) -> Iterator[Lack]:
    if not need.devices:
        return
    if not ground.host.iommufd:
        yield Lack("iommufd_missing", "/dev/iommu is not there", "modprobe iommufd")
    if not ground.memory_lockable:
        mend = "set LimitMEMLOCK=infinity for it (ulimit -l unlimited)"
        yield Lack("memory_not_lockable", "QEMU may not lock a guest's memory", mend)
    for bdf in need.devices:
        yield from _device(
            bdf, ground.devices.get(bdf), prepared=need.prepared, nodes=ground.host.vfio_nodes
        )


def _device(
    bdf: Bdf, device: Gpu | None, *, prepared: bool, nodes: bool | None = None
) -> Iterator[Lack]:
    """`nodes`: whether this kernel makes files for vfio devices."""
    if device is None:
        yield Lack("gpu_unknown", f"{bdf} is not on the bus", "reseat it, or reboot the host")
        return
    group = judge_group(bdf, device.iommu_group, device.group)
    if group.fault is not None:
        yield Lack("iommu_group_not_viable", f"{bdf} {group.fault}", group.mend)
    if space := missing_space(PciKind.SWITCH if device.is_switch else PciKind.GPU, device.bars):
        yield Lack("gpu_without_address_space", f"{bdf}: {space}", SPACE_MEND)
    if node := missing_node(device.driver, device.vfio_device, made_here=nodes):
        yield Lack("vfio_node_missing", f"{bdf}: {node}", NODE_MEND)
    if prepared and not (device.clean and is_vfio(device.driver)):
        at = device.driver or "no driver"
        mend = (
            f"see `enclave-agent gpus`; it is {'' if device.clean else 'not clean, and '}at {at}"
        )
        yield Lack("gpus_dirty", f"{bdf} is not prepared", mend)


def _places(need: Need, ground: Ground) -> Iterator[Lack]:
    """Where a trust domain's root ports are, no disk can be."""
    if need.tee is not Tee.TDX or not need.ports_by_board:
        return
    ports = root_ports_for([ground.devices[bdf] for bdf in need.devices if bdf in ground.devices])
    room = VIRTIO_PCI.data_disk_room(ports)
    if ports is not None and need.data_disks > room:
        yield disks_lack(ports, need.data_disks, room)


def disks_lack(ports: RootPorts, disks: int, room: int) -> Lack:
    """That there is no place for so many disks beside these root ports."""
    detail = f"{disks} models, and with the root ports of the layout {ports.name!r} for {room}"
    mend = "put the models into fewer packs"
    return Lack("disks_do_not_fit", f"there is no place for {detail}", mend)


def _cage(ground: Ground) -> Iterator[Lack]:
    for fault in ground.cage_faults:
        mend = "give VMs' users access to it, or set qemu.cage: report"
        yield Lack("cage_unfit", f"in a VM's cage is not to be had: {fault}", mend)


def _quotes(ground: Ground) -> Iterator[Lack]:
    if ground.quotes_fault is not None:
        mend = "start the quote generation service (qgsd), or set qemu.quote_service"
        yield Lack("quotes_unreachable", ground.quotes_fault, mend)
