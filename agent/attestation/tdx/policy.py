"""Whether a TDX quote's claims are good enough: every check, by name, passed or not. Pure.

Defaults are what a released guest image has; what only the operator or the release can know has no
default. A pin that is empty accepts nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from agent.attestation.port import Check, not_checked
from agent.attestation.tdx.claims import TdxClaims
from agent.attestation.tdx.platforms import EndorsedPlatform, match_platform
from agent.attestation.tdx.quote import INTEL_QE_VENDOR_ID
from agent.attestation.tdx.registers import ZERO_REGISTER
from agent.model.tcb_status import TcbStatus

DEBUG = 1 << 0
SEPT_VE_DISABLE = 1 << 28
PKS = 1 << 30
PERFMON = 1 << 63
# Intel TDX module: what a TD may have in ATTRIBUTES, and must and may have in XFAM.
ATTRIBUTES_KNOWN = DEBUG | SEPT_VE_DISABLE | PKS | PERFMON
XFAM_REQUIRED = 0x3  # x87 and SSE
XFAM_KNOWN = 0x0006DBE7


@dataclass(frozen=True, slots=True, kw_only=True)
class TdxPolicy:
    """What the release and the operator ask for. Registers are 48 bytes, as in the report.

    `rtmr1`, `rtmr2`: the release's `tdx_measurement`; None is not known, and then no quote is good
    enough. `report_data` None: nothing was asked that a quote could answer to. `platforms`: the
    operator's endorsed list; `release_platform`: the only one, where the release itself fixes it.
    `fmspcs` None: any platform type of Intel's. The three flags: most servers with several
    packages have them all set; each is refused until the operator allows it.
    """

    report_data: bytes | None
    rtmr1: bytes | None
    rtmr2: bytes | None
    platforms: tuple[EndorsedPlatform, ...]
    release_platform: EndorsedPlatform | None = None
    mrseams: frozenset[bytes]
    tcb_statuses: frozenset[TcbStatus] = frozenset({TcbStatus.UP_TO_DATE})
    refused_advisories: frozenset[str] = frozenset()
    minimum_tcb_evaluation_data_number: int = 0
    fmspcs: frozenset[bytes] | None = None
    allow_dynamic_platform: bool = False
    allow_cached_keys: bool = False
    allow_smt: bool = False
    minimum_tee_tcb_svn: bytes = bytes.fromhex("03010200000000000000000000000000")
    qe_vendor_id: bytes = INTEL_QE_VENDOR_ID
    td_attributes: bytes = SEPT_VE_DISABLE.to_bytes(8, "little")
    xfam: bytes = bytes.fromhex("e702060000000000")
    seam_attributes: bytes = bytes(8)
    mrsignerseam: bytes = ZERO_REGISTER
    rtmr3: bytes = ZERO_REGISTER
    mrconfigid: bytes = ZERO_REGISTER
    mrowner: bytes = ZERO_REGISTER
    mrownerconfig: bytes = ZERO_REGISTER
    mrservicetd: bytes = ZERO_REGISTER


def tdx_checks(claims: TdxClaims, policy: TdxPolicy) -> tuple[Check, ...]:
    """Every check in a fixed order. The quote is good where all have passed."""
    return (*quote_checks(claims, policy), *tcb_checks(claims, policy))


def quote_checks(claims: TdxClaims, policy: TdxPolicy) -> tuple[Check, ...]:
    """What the signed quote says by itself, each field: so that it is named whatever is wrong with
    the collateral. Not enough to believe it.
    """
    return (
        *_attributes(claims, policy),
        *_measurements(claims, policy),
        *_module(claims, policy),
        *_platform(claims, policy),
    )


def tcb_checks(claims: TdxClaims, policy: TdxPolicy) -> Iterator[Check]:
    """What Intel's collateral says of the platform."""
    tcb = claims.tcb
    if tcb is None:
        detail = "the TCB was not judged: no collateral was given"
        yield not_checked("tdx_tcb_status", detail, passed=False)
        return
    allowed = policy.tcb_statuses - {TcbStatus.REVOKED}
    yield _check(
        "tdx_tcb_status",
        tcb.status in allowed,
        f"TCB status is {tcb.status}; allowed: {', '.join(sorted(allowed)) or 'none'}",
    )
    advisories = ", ".join(tcb.advisory_ids) or "none"
    refused = [name for name in tcb.advisory_ids if name in policy.refused_advisories]
    yield _check(
        "tdx_advisories",
        not refused,
        f"advisories: {advisories}; refused: {', '.join(refused) or 'none'}",
    )
    minimum = policy.minimum_tcb_evaluation_data_number
    yield _check(
        "tdx_tcb_evaluation",
        tcb.evaluation_data_number >= minimum,
        f"TCB evaluation data number is {tcb.evaluation_data_number}, at least {minimum} wanted",
    )


def _platform(claims: TdxClaims, policy: TdxPolicy) -> Iterator[Check]:
    platform = claims.platform
    yield _equal("tdx_qe_vendor_id", "QE vendor id", claims.qe_vendor_id, policy.qe_vendor_id)
    if policy.fmspcs is None:
        yield not_checked("tdx_fmspc", f"FMSPC is {platform.fmspc.hex()}; none is pinned")
    else:
        yield _listed("tdx_fmspc", "FMSPC", platform.fmspc, policy.fmspcs)
    for code, words, found, allowed in (
        (
            "tdx_dynamic_platform",
            "dynamic platform",
            platform.dynamic_platform,
            policy.allow_dynamic_platform,
        ),
        ("tdx_cached_keys", "cached keys", platform.cached_keys, policy.allow_cached_keys),
        ("tdx_smt", "SMT", platform.smt, policy.allow_smt),
    ):
        state = "not stated" if found is None else "yes" if found else "no"
        yield _check(
            code,
            allowed or found is False,
            f"{words}: {state}; {'allowed' if allowed else 'must be no'}",
        )


def _module(claims: TdxClaims, policy: TdxPolicy) -> Iterator[Check]:
    report = claims.report
    yield _listed("tdx_mrseam", "MRSEAM", report.mrseam, policy.mrseams)
    yield _equal("tdx_mrsignerseam", "MRSIGNERSEAM", report.mrsignerseam, policy.mrsignerseam)
    yield _equal(
        "tdx_seam_attributes", "SEAM attributes", report.seam_attributes, policy.seam_attributes
    )
    minimum = policy.minimum_tee_tcb_svn
    below = [n for n, (a, b) in enumerate(zip(report.tee_tcb_svn, minimum, strict=True)) if a < b]
    yield _check(
        "tdx_tee_tcb_svn",
        not below,
        f"TEE TCB SVN is {report.tee_tcb_svn.hex()}, at least {minimum.hex()} wanted"
        + (f"; component {below[0]} is below" if below else ""),
    )


def _attributes(claims: TdxClaims, policy: TdxPolicy) -> Iterator[Check]:
    report = claims.report
    attributes = int.from_bytes(report.td_attributes, "little")
    xfam = int.from_bytes(report.xfam, "little")
    yield _check(
        "tdx_debug", not attributes & DEBUG, f"debug is {'on' if attributes & DEBUG else 'off'}"
    )
    yield _check(
        "tdx_attributes_reserved",
        not attributes & ~ATTRIBUTES_KNOWN,
        f"TD attributes outside the known ones: {attributes & ~ATTRIBUTES_KNOWN:#x}",
    )
    yield _equal("tdx_attributes", "TD attributes", report.td_attributes, policy.td_attributes)
    yield _check(
        "tdx_xfam_required",
        xfam & XFAM_REQUIRED == XFAM_REQUIRED,
        f"XFAM bits {XFAM_REQUIRED:#x} must be set, it has {xfam & XFAM_REQUIRED:#x} of them",
    )
    yield _check(
        "tdx_xfam_forbidden",
        not xfam & ~XFAM_KNOWN,
        f"XFAM outside the known bits: {xfam & ~XFAM_KNOWN:#x}",
    )
    yield _equal("tdx_xfam", "XFAM", report.xfam, policy.xfam)


def _measurements(claims: TdxClaims, policy: TdxPolicy) -> Iterator[Check]:
    report = claims.report
    yield _endorsed(claims, policy)
    for name in ("rtmr1", "rtmr2", "rtmr3", "mrconfigid", "mrowner", "mrownerconfig"):
        yield _equal(f"tdx_{name}", name.upper(), getattr(report, name), getattr(policy, name))
    if report.mrservicetd is not None:
        yield _equal("tdx_mrservicetd", "MRSERVICETD", report.mrservicetd, policy.mrservicetd)
    if policy.report_data is not None:
        yield _equal("tdx_report_data", "report data", report.report_data, policy.report_data)


def _endorsed(claims: TdxClaims, policy: TdxPolicy) -> Check:
    mrtd, rtmr0 = claims.report.mrtd, claims.report.rtmr0
    own = policy.release_platform
    platforms = policy.platforms if own is None else (own,)
    match = match_platform(platforms, mrtd, rtmr0)
    found = f"MRTD {mrtd.hex()} with RTMR0 {rtmr0.hex()}"
    if match is not None:
        return _check("tdx_platform", True, f"{found} is the endorsed platform {match.name!r}")
    listed = len(platforms)
    none = "and no platform is endorsed for this shape"
    reason = f"is none of the {listed} platforms endorsed for this shape" if listed else none
    return _check("tdx_platform", False, f"{found} {reason}")


def _equal(code: str, words: str, found: bytes, wanted: bytes | None) -> Check:
    if wanted is None:
        return _check(code, False, f"{words} is {found.hex()}, none is known to compare it with")
    if found == wanted:
        return _check(code, True, f"{words} is {found.hex()}")
    return _check(code, False, f"{words} is {found.hex()}, not {wanted.hex()}")


def _listed(code: str, words: str, found: bytes, allowed: frozenset[bytes]) -> Check:
    if found in allowed:
        return _check(code, True, f"{words} is {found.hex()}")
    return _check(code, False, f"{words} is {found.hex()}, none of the {len(allowed)} allowed")


def _check(code: str, passed: bool, detail: str) -> Check:
    return Check(code=code, passed=passed, detail=detail)
