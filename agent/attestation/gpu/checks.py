"""What the devices' claims are worth together: every check, by name. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from agent.attestation.gpu.claims import DeviceKind, GpuClaims
from agent.attestation.port import Check, not_checked


def device_checks(
    claims: Sequence[GpuClaims], nonce: bytes, expected_count: int
) -> tuple[Check, ...]:
    """Every check in a fixed order; the last says what was not looked at, and always passes."""
    gpus = [device for device in claims if device.kind is DeviceKind.GPU]
    switches = len(claims) - len(gpus)
    return (
        *(_device(device, nonce) for device in claims),
        *_distinct(claims),
        Check(
            code="gpu_count",
            passed=len(gpus) == expected_count,
            detail=f"{len(gpus)} GPUs gave evidence, {expected_count} belong to the enclave; "
            f"{switches} switches beside them",
        ),
        _fwids(claims),
        not_checked(
            "gpu_ocsp_not_checked", "revocation of the devices' certificates was not asked (OCSP)"
        ),
    )


def _device(device: GpuClaims, nonce: bytes) -> Check:
    passed = device.nonce == nonce
    words = (
        f"{device.device}: report of {len(device.measurements)} measurements, "
        f"signed up to the root that is believed; VBIOS {device.vbios_version}"
    )
    if device.driver_version is not None:
        words += f", driver {device.driver_version}"
    fresh = "over the nonce" if passed else f"over another nonce, {device.nonce.hex()}"
    return Check(code="gpu_nonce", passed=passed, detail=f"{words}, {fresh}")


def _distinct(claims: Sequence[GpuClaims]) -> Iterator[Check]:
    """By the device's name and by its provisioned key, each."""
    for what, values in (
        ("device", [device.device for device in claims]),
        ("device key", [device.identity for device in claims]),
    ):
        twice = sorted(value for value, times in Counter(values).items() if times > 1)
        yield Check(
            code="gpu_distinct",
            passed=not twice,
            detail=f"the same {what} more than once: {', '.join(twice)}"
            if twice
            else f"every {what} is another",
        )


def _fwids(claims: Sequence[GpuClaims]) -> Check:
    without = [device.device for device in claims if device.fwid is None]
    if not without:
        detail = "every report is of the firmware that its certificate is for"
        return Check(code="gpu_fwid", passed=True, detail=detail)
    return not_checked(
        "gpu_fwid_not_checked",
        f"firmware and certificate not compared for {', '.join(without)}: "
        "their reports do not repeat the digest",
    )
