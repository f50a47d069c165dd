"""What a VM's process has to do with under /dev: its devices, and a tap opened for it."""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from agent.enclaves.network import NetworkError
from agent.enclaves.port import EnclaveError
from agent.enclaves.spec import SevSnpTee, TeeVariant, VmAccel
from agent.model.ids import Bdf

BorrowHere = Callable[..., int]  # `agent.host.units.borrow_here`

_TUN = "/dev/net/tun"
# linux/if_tun.h
_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_IFREQ = struct.Struct("16sH22x")


def devices_of(
    accel: VmAccel, tee: TeeVariant, passed: Sequence[Bdf], sysfs_root: Path = Path("/sys")
) -> tuple[Path, ...]:
    """The nodes that QEMU opens by name, for this kind of VM and these PCI devices.

    Both ways to a PCI device (its group, and its own node with iommufd) are named where the kernel
    has them; which one QEMU takes, its arguments say.
    """
    nodes: list[Path] = []
    if accel is VmAccel.KVM:
        nodes.append(Path("/dev/kvm"))
    if isinstance(tee, SevSnpTee):
        nodes.append(Path("/dev/sev"))
    if passed:
        nodes += [Path("/dev/iommu"), Path("/dev/vfio/vfio")]
    for bdf in passed:
        device = sysfs_root / "bus/pci/devices" / bdf
        group = device / "iommu_group"
        if group.exists():
            nodes.append(Path("/dev/vfio") / group.resolve().name)
        nodes += [Path("/dev/vfio/devices") / one.name for one in device.glob("vfio-dev/*")]
    return tuple(dict.fromkeys(nodes))


def open_passed(
    held: ExitStack, passed: Sequence[Bdf], borrow: BorrowHere | None = None
) -> tuple[int, tuple[int, ...]]:
    """Descriptors of /dev/iommu and of each device's own node, for as long as `held` is.

    So QEMU opens none of them, and no others of their kind. `borrow`: who opens them where we may
    not. Raises EnclaveError `vfio_node_missing`.
    """
    nodes = []
    for bdf in passed:
        found = [*Path("/sys/bus/pci/devices", bdf).glob("vfio-dev/*")]
        if not found:
            raise EnclaveError("vfio_node_missing", f"{bdf} has no file in /dev/vfio/devices")
        nodes.append(Path("/dev/vfio/devices") / found[0].name)
    opened = []
    for path in (Path("/dev/iommu"), *nodes):
        try:
            fd = borrow("open", str(path)) if borrow else os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise EnclaveError("vfio_node_missing", f"{path}: {error.strerror}") from error
        held.callback(os.close, fd)
        opened.append(fd)
    return opened[0], tuple(opened[1:])


def open_tap(held: ExitStack, name: str) -> int:
    """An end of this tap link, as QEMU wants it, for as long as `held` is. Raises NetworkError.

    Who inherits it can speak on this link and open no other: the tap driver's node is not for it.
    """
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
    try:
        fd = os.open(_TUN, os.O_RDWR)
        held.callback(os.close, fd)
        fcntl.ioctl(fd, _TUNSETIFF, _IFREQ.pack(name.encode(), flags))
    except OSError as error:
        raise NetworkError(f"cannot open the tap {name}: {error.strerror}") from error
    return fd
