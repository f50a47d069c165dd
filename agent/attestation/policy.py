"""What is asked of evidence of every kind, and the verdict that checks come to. Pure.

Each technology has a policy of its own (`policy_snp`, `policy_tdx`), whose checks are named after
it, and which is imported where there are claims of it. A verdict is good only if every single
check passed.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import msgspec

from agent.attestation.claims import Claims, SnpClaims
from agent.attestation.expected import Expected
from agent.attestation.origin import Origin
from agent.attestation.port import Check, CollateralUsed, Verdict
from agent.attestation.roots import NVIDIA_RIM_ROOT
from agent.config import SIMULATED, AttestationConfig, SignerRule, SnpConfig, SnpFloors
from agent.model.evidence_edition import FLOORS_EDITION, knows_machines

if TYPE_CHECKING:
    from agent.attestation.gpu.claims import GpuClaims
    from agent.attestation.gpu.golden import References


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidencePolicy:
    """What is asked of evidence. `allow_simulated`: never in a production configuration.
    `unnamed_keys`: ID keys and author keys pass that nobody named. `hold_to_manifests`: devices'
    measurements are compared with reference manifests wherever there are any. `hold_to_board`:
    devices are held against the mode and the board that they should be of.
    """

    config: AttestationConfig
    allow_simulated: bool = False
    unnamed_keys: bool = False
    hold_to_manifests: bool = True
    hold_to_board: bool = True

    def of_edition(self, edition: int) -> EvidencePolicy:
        """With the defaults of that edition in the place of stricter ones that came later; what
        was configured otherwise stays.
        """
        if knows_machines(edition):
            return self
        if edition >= FLOORS_EDITION:
            return replace(self, hold_to_board=False)
        snp, default = self.config.snp, SnpConfig()
        former = {"signer": SignerRule.ANY, "minimum": SnpFloors.NONE, "require_crl": False}
        kept = {name: one for name, one in former.items() if _same(snp, default, name)}
        relaxed = msgspec.structs.replace(snp, **kept)
        config = msgspec.structs.replace(self.config, snp=relaxed)
        asked_for = self.config.gpu.require_rim
        return replace(
            self,
            config=config,
            unnamed_keys=True,
            hold_to_manifests=asked_for,
            hold_to_board=False,
        )


def _same(snp: SnpConfig, default: SnpConfig, name: str) -> bool:
    return bool(getattr(snp, name) == getattr(default, name))


def check_claims(
    claims: Claims, policy: EvidencePolicy, expected: Expected, now: dt.datetime
) -> tuple[Check, ...]:
    """Every check of one piece of evidence that was verified whole, in the order of print."""
    root = check_root("genuine_root", policy, simulated=claims.simulated)
    if isinstance(claims, SnpClaims):
        from agent.attestation.policy_snp import check_snp

        unnamed = policy.unnamed_keys
        return (root, *check_snp(claims, policy.config.snp, expected, now, unnamed_keys=unnamed))
    from agent.attestation.policy_tdx import check_quote, check_tcb

    config = policy.config.tdx
    return (
        root,
        *check_quote(claims, config, expected),
        *check_tcb(claims, config, expected, now),
    )


def check_devices(
    claims: Sequence[GpuClaims],
    policy: EvidencePolicy,
    references: References,
    *,
    nonce: bytes,
    expected: Expected,
    now: dt.datetime,
) -> tuple[Check, ...]:
    """Every check of the devices. Raises EvidenceError."""
    from agent.attestation.gpu.board import board_checks
    from agent.attestation.gpu.checks import device_checks
    from agent.attestation.gpu.golden import golden_checks

    if not policy.hold_to_manifests:
        references = replace(references, manifests={})
    root = check_root("gpu_genuine_root", policy, simulated=simulated_devices(claims, references))
    golden = golden_checks(claims, references, policy.config.gpu, now)
    board = board_checks(claims, expected.gpu_mode) if policy.hold_to_board else ()
    return (root, *device_checks(claims, nonce, expected.gpus), *board, *golden)


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


def decide(
    checks: Iterable[Check],
    *,
    simulated: bool,
    firmware: str | None = None,
    origin: Origin | None = None,
    collateral: tuple[CollateralUsed, ...] = (),
) -> Verdict:
    """The verdict that these checks come to. No checks at all are no evidence."""
    listed = tuple(checks)
    return Verdict(
        attested=bool(listed) and all(check.passed for check in listed),
        checks=listed,
        simulated=simulated,
        firmware=firmware,
        origin=origin,
        collateral=collateral,
    )
