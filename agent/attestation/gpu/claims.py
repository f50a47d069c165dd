"""What verified NVIDIA evidence claims of one device. Values only. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from agent.attestation.manifest_name import ManifestName


class DeviceKind(StrEnum):
    """What a piece of evidence is of: switches come beside the GPUs that they join."""

    GPU = "gpu"
    NVSWITCH = "nvswitch"


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuClaims:
    """One device. Every field is under signatures that hold up to the pinned root.

    `device`: the device's own name in its certificate. `identity`: SHA-256 of the key that was
    provisioned into it. `measurements`: (index, digest), as its firmware gave them. `fwid`: the
    firmware digest that its certificate was made for; None where the report does not repeat it, so
    that nothing could be compared. `driver_version`: GPUs only. `simulated`: under another root
    than NVIDIA's. `manifests`: the reference manifests that its report names.
    """

    kind: DeviceKind
    architecture: str
    chip: str
    device: str
    identity: str
    nonce: bytes
    measurements: tuple[tuple[int, bytes], ...]
    fwid: bytes | None
    vbios_version: str
    driver_version: str | None
    simulated: bool
    manifests: tuple[ManifestName, ...] = ()
