"""NVIDIA's devices as a guest's document lists them: which evidence stands for which. Pure.

Invariant: no device is passed over. One whose kind, vendor or format is not known is refused,
since nothing could be said of it, and one may not stand in the place of another kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TypeVar

import msgspec

from agent.attestation.document import DeviceItem
from agent.attestation.evidence import EvidenceError
from agent.attestation.gpu.claims import DeviceKind, GpuClaims
from agent.attestation.gpu.verify import GpuEvidence, verify_devices
from agent.attestation.strict_json import shown

GPU_FORMAT = "https://tinfoil.sh/format/nvidia-gpu-evidence/v1"
NVSWITCH_FORMAT = "https://tinfoil.sh/format/nvidia-nvswitch-evidence/v1"
VENDOR = "nvidia"

T = TypeVar("T")


class _Switches(msgspec.Struct, frozen=True):
    """All switches of a board in one, as NVIDIA's tool prints them; members may be added to it."""

    evidences: tuple[GpuEvidence, ...]
    result_code: int
    result_message: str = ""


def verify_items(
    items: Sequence[DeviceItem], now: datetime, root_spki_sha256: str
) -> tuple[GpuClaims, ...]:
    """Claims of every device, in order. Raises EvidenceError `gpu_format`, `gpu_malformed`,
    `gpu_kind`, and whatever `verify_devices` refuses.
    """
    listed = [(kind, one) for item in items for kind, one in _evidence(item)]
    claims = verify_devices([one for _, one in listed], now, root_spki_sha256=root_spki_sha256)
    for index, ((kind, _), device) in enumerate(zip(listed, claims, strict=True)):
        if device.kind is not kind:
            raise EvidenceError(
                "gpu_kind",
                f"device {index} is listed as a {kind}, and its chip is a {device.kind}",
            )
    return claims


def _evidence(item: DeviceItem) -> list[tuple[DeviceKind, GpuEvidence]]:
    if (item.vendor, item.kind, item.format) == (VENDOR, DeviceKind.GPU, GPU_FORMAT):
        return [(DeviceKind.GPU, _read(item, GpuEvidence))]
    if (item.vendor, item.kind, item.format) == (VENDOR, DeviceKind.NVSWITCH, NVSWITCH_FORMAT):
        return [(DeviceKind.NVSWITCH, one) for one in _switches(item)]
    raise EvidenceError(
        "gpu_format",
        f"device_evidence {shown(item.id)}: nothing is known of kind {shown(item.kind)}, "
        f"vendor {shown(item.vendor)}, format {shown(item.format)}",
    )


def _switches(item: DeviceItem) -> tuple[GpuEvidence, ...]:
    switches = _read(item, _Switches)
    if switches.result_code or not switches.evidences:
        raise EvidenceError(
            "gpu_malformed",
            f"device_evidence {shown(item.id)}: {len(switches.evidences)} switches, "
            f"result {switches.result_code}: {shown(switches.result_message)}",
        )
    return switches.evidences


def _read(item: DeviceItem, kind: type[T]) -> T:
    try:
        return msgspec.convert(item.evidence, kind, strict=True)
    except msgspec.ValidationError as error:
        raise EvidenceError(
            "gpu_malformed",
            f"device_evidence {shown(item.id)}: {str(error).replace('`', '')[:200]}",
        ) from error
