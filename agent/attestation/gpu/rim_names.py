"""The names of a device's reference manifests, out of what its signed report says of it. Pure.

Source: NVIDIA's nvtrust, the verifiers of GPUs and of NVSwitches: how they name what they ask the
manifest service for. A switch's report does not say its project; all LS10 have one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from agent.attestation.gpu.claims import DeviceKind
from agent.attestation.gpu.identity import DeviceIdentity
from agent.attestation.manifest_name import ManifestName

_CHIP_SKU, _PROJECT, _PROJECT_SKU, _CHIP_INFO = 15, 17, 18, 35  # opaque fields, NVIDIA's numbers
_LS10 = ("5612", "0002", "890")
_PART = re.compile(r"[A-Z0-9][A-Z0-9.-]{0,31}")


def manifest_names(
    identity: DeviceIdentity,
    opaque: Mapping[int, bytes],
    driver_version: str | None,
    vbios_version: str,
) -> tuple[ManifestName, ...]:
    """Of the driver, where the device has one, and of its VBIOS: those that the report tells.

    A name of which a part is missing, or nothing that a name can have in it, is left out.
    """
    return (
        *_driver(identity, opaque, driver_version),
        *_vbios(identity, opaque, vbios_version),
    )


def wanted_manifests(kind: DeviceKind) -> int:
    """How many manifests there must be for all measurements of a device to be held against."""
    return 2 if kind is DeviceKind.GPU else 1


def _driver(
    identity: DeviceIdentity, opaque: Mapping[int, bytes], version: str | None
) -> Iterator[ManifestName]:
    if version is None:
        return
    if identity.architecture == "HOPPER":
        yield from _name("NV_GPU_DRIVER", identity.chip, (identity.chip, version), version)
    else:  # from Blackwell on the report says which chip its manifests are for
        chip = _text(opaque.get(_CHIP_INFO, b"")) or identity.chip
        yield from _name("NV_GPU_CC_DRIVER", chip, (chip, version), version)


def _vbios(
    identity: DeviceIdentity, opaque: Mapping[int, bytes], version: str
) -> Iterator[ManifestName]:
    if identity.kind is DeviceKind.NVSWITCH:
        prefix, place = "NV_SWITCH_BIOS", _LS10
    else:
        prefix = "NV_GPU_VBIOS"
        project, sku, chip = (
            _text(opaque.get(field, b"")) for field in (_PROJECT, _PROJECT_SKU, _CHIP_SKU)
        )
        place = (project, sku, chip)
    yield from _name(prefix, identity.chip, (*place, version.replace(".", "")), version)


def _name(
    prefix: str, product: str, parts: tuple[str, ...], version: str
) -> Iterator[ManifestName]:
    shown = [part.upper() for part in parts]
    if all(map(_PART.fullmatch, shown)):
        yield ManifestName("_".join((prefix, *shown)), product.upper(), version.upper())


def _text(value: bytes) -> str:
    return value.partition(b"\0")[0].decode("ascii", "replace")
