"""Whether devices run the firmware and the driver that NVIDIA stands for: every check. Pure.

Each active measurement of a manifest must be one of its golden values; the device's report counts
them from 1, a manifest from 0. What could not be compared is said, and passes only where the
policy does not ask for it; what differs from a genuine manifest never passes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from agent.attestation.evidence import EvidenceError
from agent.attestation.gpu.claims import DeviceKind, GpuClaims
from agent.attestation.gpu.rim import ReferenceManifest, read_manifest
from agent.attestation.gpu.rim_names import wanted_manifests
from agent.attestation.manifest_name import ManifestName
from agent.attestation.port import Check, CollateralUsed, not_checked
from agent.config import GpuPolicy

_DOTTED = re.compile(r"[0-9A-Fa-f]{1,8}(\.[0-9A-Fa-f]{1,8}){0,7}")


@dataclass(frozen=True, slots=True, kw_only=True)
class References:
    """The manifests that are to be had, by their names' ids, and whose word they are."""

    manifests: Mapping[str, bytes]
    root_spki_sha256: str


def golden_checks(
    devices: Sequence[GpuClaims], references: References, policy: GpuPolicy, now: datetime
) -> Iterator[Check]:
    """Raises EvidenceError for a manifest that does not hold, or is of another product."""
    for device in devices:
        yield from _measurements(device, references, policy, now)
    yield from _minimum_drivers(devices, policy)
    yield from _minimum_vbioses(devices, policy)


def manifests_used(
    devices: Sequence[GpuClaims], references: References, now: datetime
) -> tuple[CollateralUsed, ...]:
    """Each manifest once that is there and named by a device, in the order of the devices."""
    named = dict.fromkeys(name for device in devices for name in device.manifests)
    given = {name: name.id for name in named if name.id in references.manifests}
    found = ((id_, _manifest(name, references, now)) for name, id_ in given.items())
    return tuple(
        CollateralUsed(
            kind="NVIDIA reference manifest",
            name=id_,
            issued=manifest.valid_from,
            until=manifest.valid_until,
        )
        for id_, manifest in found
    )


def _measurements(
    device: GpuClaims, references: References, policy: GpuPolicy, now: datetime
) -> Iterator[Check]:
    given = {
        name: _manifest(name, references, now)
        for name in device.manifests
        if name.id in references.manifests
    }
    twice = Counter(index for manifest in given.values() for index in manifest.golden)
    shared = sorted(index for index, times in twice.items() if times > 1)
    if shared:
        which = ", ".join(name.id for name in given)
        detail = f"{device.device}: {which} both claim index {_listed(shared)}"
        yield Check(code="gpu_rim_conflict", passed=False, detail=detail)
    compared, wrong, unsettled = _compared(device, given, policy, now)
    if compared or wrong:
        detail = f"{device.device}: {'; '.join((*wrong, *compared))}"
        yield Check(code="gpu_rim", passed=not wrong, detail=detail)
    if unsettled:
        needed = "; attestation.gpu.require_rim demands it" if policy.require_rim else ""
        detail = f"{device.device}: {'; '.join(unsettled)}{needed}"
        yield not_checked("gpu_rim_not_checked", detail, passed=not policy.require_rim)


def _compared(
    device: GpuClaims,
    given: Mapping[ManifestName, ReferenceManifest],
    policy: GpuPolicy,
    now: datetime,
) -> tuple[list[str], list[str], list[str]]:
    """What is golden, what is not, and what is not settled by the manifests that are there."""
    measured = dict(device.measurements)
    compared: list[str] = []
    wrong: list[str] = []
    unsettled = [
        f"no reference manifest (RIM) {name.id} is to be had"
        for name in device.manifests
        if name not in given
    ]
    if len(device.manifests) < wanted_manifests(device.kind):
        unsettled.append("its report does not name every reference manifest")
    for name, manifest in given.items():
        total = len(manifest.golden)
        differ = sorted(
            index
            for index, values in manifest.golden.items()
            if measured.get(index + 1) not in values
        )
        ended = f"its certificate ended on {manifest.valid_until:%Y-%m-%d}"
        if differ:
            where = f"measurements at index {_listed(differ)} are not those of {name.id}"
            wrong.append(f"{where} ({total - len(differ)} of {total} are)")
        elif now <= manifest.valid_until:
            compared.append(f"{total} of {total} measurements as in {name.id}")
        elif policy.allow_expired_rim:
            compared.append(f"{total} of {total} measurements as in {name.id}, and {ended}")
        else:
            unsettled.append(
                f"{total} of {total} measurements are as in {name.id}, but {ended} "
                "(attestation.gpu.allow_expired_rim)"
            )
    return compared, wrong, unsettled


def _manifest(name: ManifestName, references: References, now: datetime) -> ReferenceManifest:
    data = references.manifests[name.id]
    manifest = read_manifest(data, references.root_spki_sha256, now)
    if not manifest.is_of(name):
        raise EvidenceError(
            "gpu_rim_other",
            f"{name.id} is of {manifest.product} {manifest.version}, "
            f"not of {name.product} {name.version}",
        )
    return manifest


def _minimum_drivers(devices: Sequence[GpuClaims], policy: GpuPolicy) -> Iterator[Check]:
    minimum = policy.minimum_driver
    if minimum is None:
        return
    for device in devices:
        if device.kind is not DeviceKind.GPU:
            continue
        version = device.driver_version or ""
        found, least = _dotted(version, 10), _dotted(minimum, 10)
        passed = found is not None and least is not None and found >= least
        detail = f"{device.device}: driver {version or 'unknown'}, at least {minimum} is asked"
        yield Check(code="gpu_driver_minimum", passed=passed, detail=detail)


def _minimum_vbioses(devices: Sequence[GpuClaims], policy: GpuPolicy) -> Iterator[Check]:
    minimums = {
        "HOPPER": policy.minimum_vbios.hopper,
        "BLACKWELL": policy.minimum_vbios.blackwell,
        "LS10": policy.minimum_vbios.nvswitch,
    }
    for device in devices:
        minimum = minimums.get(device.architecture)
        if minimum is None:
            continue
        found, least = _dotted(device.vbios_version, 16), _dotted(minimum, 16)
        passed = found is not None and least is not None and found >= least
        detail = f"{device.device}: VBIOS {device.vbios_version}, at least {minimum} is asked"
        yield Check(code="gpu_vbios_minimum", passed=passed, detail=detail)


def _dotted(version: str, base: int) -> tuple[int, ...] | None:
    """Its numbers; None for what is no dotted version: that is never new enough."""
    if _DOTTED.fullmatch(version) is None:
        return None
    try:
        return tuple(int(part, base) for part in version.split("."))
    except ValueError:  # letters where the numbers are decimal
        return None


def _listed(indices: Sequence[int]) -> str:
    return ", ".join(map(str, indices))
