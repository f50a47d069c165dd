"""What a QEMU can do, and what of a launch's needs it cannot. Pure.

Invariant: a launch that this QEMU cannot make is told so beforehand, by version, object or device,
and not by QEMU's last words.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from agent.config import Tee

_MEMORY = frozenset(("size", "prealloc", "dump", "merge", "host-nodes", "policy"))

# The objects of a command line, with the properties that are given to them.
OBJECTS: Mapping[str, frozenset[str]] = {
    "sev-snp-guest": frozenset(
        ("sev-device", "cbitpos", "reduced-phys-bits", "policy", "kernel-hashes", "host-data")
    ),
    "tdx-guest": frozenset(
        ("sept-ve-disable", "mrconfigid", "mrowner", "mrownerconfig", "quote-generation-socket")
    ),
    "memory-backend-memfd": _MEMORY | {"share"},
    "memory-backend-ram": _MEMORY,
    "iommufd": frozenset(),
    "igvm-cfg": frozenset(("file",)),
}
# What a launch in one measured file needs beyond that, of each TEE.
_IGVM_PROPERTIES: Mapping[str, frozenset[str]] = {
    "sev-snp-guest": frozenset(("measure-bsp-only",)),
}
_IGVM_MACHINE = "igvm-cfg"
DEVICES: Mapping[str, frozenset[str]] = {"vfio-pci": frozenset(("host", "iommufd"))}

_TEE_OBJECTS = {
    Tee.SEV_SNP: ("sev-snp-guest", "memory-backend-memfd"),
    Tee.TDX: ("tdx-guest", "memory-backend-ram"),
}
_SINCE = {Tee.SEV_SNP: (9, 1), Tee.TDX: (10, 1)}


class _KnownFault(NamedTuple):
    """What releases from `since` on, before `mended`, get wrong though they have all that is asked
    for. `devices`: only where some of the host's go with it.
    """

    tee: Tee
    since: tuple[int, int]
    mended: tuple[int, int]
    devices: bool
    detail: str


_FAULTS = (
    # QEMU's ChangeLog of 9.2, VFIO: a regression of 9.1. The launch ends with those words.
    _KnownFault(
        Tee.SEV_SNP,
        (9, 1),
        (9, 2),
        devices=True,
        detail='it gives no device to a SEV-SNP guest ("Cannot set discarding of RAM broken")',
    ),
)


class SevPlatform(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What QEMU says of this processor's memory encryption (`query-sev-capabilities`)."""

    cbitpos: int
    reduced_phys_bits: int


class QemuCapabilities(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`objects` and `devices`: those asked for that it has, with all their properties. `machine`:
    the properties of its q35.

    `sev` None: it did not say, for the reason in `no_sev`.
    """

    version: tuple[int, int, int]
    objects: dict[str, tuple[str, ...]]
    devices: dict[str, tuple[str, ...]]
    machine: tuple[str, ...] = ()
    sev: SevPlatform | None = None
    no_sev: str = ""


def lacks(found: QemuCapabilities, tee: Tee, *, devices: bool) -> list[str]:
    """What this QEMU cannot do of a launch, in words; `devices`: some of the host's go with it."""
    told = []
    since = _SINCE.get(tee)
    if since is not None and found.version[:2] < since:
        told.append(f"tee: {tee} needs QEMU {since[0]}.{since[1]} or newer")
    told += [
        f"{one.detail}; QEMU {one.mended[0]}.{one.mended[1]} and newer do"
        for one in _FAULTS
        if one.tee is tee
        and one.since <= found.version[:2] < one.mended
        and (devices or not one.devices)
    ]
    for name in _TEE_OBJECTS.get(tee, ()):
        told += _missing("object", name, OBJECTS[name], found.objects)
    if devices and tee in _TEE_OBJECTS:
        told += _missing("object", "iommufd", OBJECTS["iommufd"], found.objects)
        told += _missing("device", "vfio-pci", DEVICES["vfio-pci"], found.devices)
    if tee is Tee.SEV_SNP and found.sev is None:
        told.append(f"it does not say where this processor's C-bit is: {found.no_sev}")
    return told


def igvm_lacks(found: QemuCapabilities, tee: Tee) -> list[str]:
    """What this QEMU cannot do of a launch in one measured file (IGVM), in words."""
    told = []
    if tee not in _TEE_OBJECTS:
        told.append(f"tee: {tee} has no such launch, only sev-snp and tdx have")
    told += _missing("object", "igvm-cfg", OBJECTS["igvm-cfg"], found.objects)
    if _IGVM_MACHINE not in found.machine:
        told.append(f"its machine q35 has no {_IGVM_MACHINE}")
    for name in _TEE_OBJECTS.get(tee, ())[:1]:
        wanted = OBJECTS[name] | _IGVM_PROPERTIES.get(name, frozenset())
        told += _missing("object", name, wanted, found.objects)
    if tee is Tee.TDX:
        told.append("no QEMU starts a tdx-guest of such a file")
    return told


def _missing(
    what: str, name: str, wanted: frozenset[str], found: Mapping[str, tuple[str, ...]]
) -> list[str]:
    if name not in found:
        return [f"it has no {what} {name}"]
    without = sorted(wanted - set(found[name]))
    return [f"its {what} {name} has no {', '.join(without)}"] if without else []
