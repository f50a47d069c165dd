"""Judging claims: (claims, policy, now) to a verdict with every check listed. Pure.

Each technology has a `check_…` of its own, whose checks are named after it, and which is imported
where there are claims of it; here they are put side by side. A verdict is good only if every
single check passed.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.attestation.claims import Claims, SnpClaims
from agent.attestation.expected import Expected
from agent.attestation.port import Check, Verdict
from agent.attestation.roots import NVIDIA_RIM_ROOT
from agent.config import SIMULATED, AttestationConfig

if TYPE_CHECKING:
    from agent.attestation.gpu.claims import GpuClaims
    from agent.attestation.gpu.golden import References


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidencePolicy:
    """What is asked of evidence. `allow_simulated`: never in a production configuration."""

    config: AttestationConfig
    allow_simulated: bool = False


def check_claims(
    claims: Claims, policy: EvidencePolicy, expected: Expected, now: dt.datetime
) -> tuple[Check, ...]:
    """Every check of one piece of evidence, in the order of print."""
    root = check_root("genuine_root", policy, simulated=claims.simulated)
    if isinstance(claims, SnpClaims):
        from agent.attestation.policy_snp import check_snp

        return (root, *check_snp(claims, policy.config.snp, expected, now))
    from agent.attestation.policy_tdx import check_tdx

    return (root, *check_tdx(claims, policy.config.tdx, expected, now))


def check_devices(
    claims: Sequence[GpuClaims],
    policy: EvidencePolicy,
    references: References,
    *,
    nonce: bytes,
    gpus: int,
    now: dt.datetime,
) -> tuple[Check, ...]:
    """Every check of the devices, of which `gpus` must be GPUs. Raises EvidenceError."""
    from agent.attestation.gpu.checks import device_checks
    from agent.attestation.gpu.golden import golden_checks

    root = check_root("gpu_genuine_root", policy, simulated=simulated_devices(claims, references))
    golden = golden_checks(claims, references, policy.config.gpu, now)
    return (root, *device_checks(claims, nonce, gpus), *golden)


def simulated_devices(claims: Sequence[GpuClaims], references: References) -> bool:
    """Whether somebody else than the vendor vouches for a device, or for its golden values."""
    foreign = references.root_spki_sha256 != NVIDIA_RIM_ROOT
    return any(device.simulated for device in claims) or (foreign and bool(references.manifests))


def check_root(code: str, policy: EvidencePolicy, *, simulated: bool) -> Check:
    """That what vouches for claims is the vendor's."""
    if not simulated:
        return Check(code=code, passed=True, detail="its root is the vendor's")
    return Check(
        code=code,
        passed=policy.allow_simulated,
        detail=f"{SIMULATED}: its root is a simulated one",
    )


def decide(checks: Iterable[Check], *, simulated: bool, firmware: str | None = None) -> Verdict:
    """The verdict that these checks come to. No checks at all are no evidence."""
    listed = tuple(checks)
    attested = bool(listed) and all(check.passed for check in listed)
    return Verdict(attested=attested, checks=listed, simulated=simulated, firmware=firmware)
