"""A TDX quote and Intel's collateral in, claims out; or a refusal that says which part and why.

Invariant: claims exist only where every signature holds up to the pinned root, every document and
certificate is in date and not revoked, and the library agrees. Whether such claims are good enough
is the policy's part.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from agent.attestation.evidence import EvidenceError
from agent.attestation.pinned_chain import Chain, earliest_end
from agent.attestation.roots import INTEL_ROOT
from agent.attestation.tdx.claims import PlatformClaims, TdxClaims
from agent.attestation.tdx.collateral import TdxCollateral
from agent.attestation.tdx.documents import (
    check_qe,
    read_qe_identity,
    read_tcb_info,
    verify_documents,
)
from agent.attestation.tdx.quote import TdxQuote, parse_quote
from agent.attestation.tdx.revocation import check_revocation
from agent.attestation.tdx.signatures import verify_signatures
from agent.attestation.tdx.tcb import judge_tcb, read_platform

_SIGNED = (
    "quote parsed to the letter",
    "PCK certificate chain to Intel's pinned root",
    "QE report, attestation key and TD report signatures",
)
_JUDGED = (
    "revocation lists of the root and of the PCK issuer",
    "TCB info and QE identity, signed and in date",
    "TCB level of the platform",
)


def verify_quote(
    quote: bytes,
    collateral: TdxCollateral,
    now: datetime,
    *,
    root_spki_sha256: str = INTEL_ROOT,
) -> TdxClaims:
    """Verify everything; `now` is aware. Raises EvidenceError, and never claims in part."""
    parsed, chain, claims = _signed(quote, now, root_spki_sha256)
    valid_until = _verify_collateral(
        parsed, claims.platform, chain, collateral, now, root=root_spki_sha256
    )
    tcb = judge_tcb(parsed, chain, collateral, now, valid_until)
    return replace(claims, tcb=tcb, checked=(*_SIGNED, *_JUDGED))


def verify_signed_quote(
    quote: bytes, now: datetime, *, root_spki_sha256: str = INTEL_ROOT
) -> TdxClaims:
    """Verify the signatures alone, without collateral: `tcb` is None, which no policy accepts.

    For a caller that shows what a quote says while its collateral is still to come.
    """
    _parsed, _chain, claims = _signed(quote, now, root_spki_sha256)
    return claims


def _signed(quote: bytes, now: datetime, root: str) -> tuple[TdxQuote, Chain, TdxClaims]:
    parsed = parse_quote(quote)
    chain = verify_signatures(parsed, now, root)
    claims = TdxClaims(
        quote_version=parsed.version,
        qe_vendor_id=parsed.qe_vendor_id,
        user_data=parsed.user_data,
        report=parsed.report,
        platform=read_platform(chain[0]),
        tcb=None,
        checked=_SIGNED,
        simulated=root != INTEL_ROOT,
    )
    return parsed, chain, claims


def _verify_collateral(
    quote: TdxQuote,
    platform: PlatformClaims,
    chain: Chain,
    collateral: TdxCollateral,
    now: datetime,
    *,
    root: str,
) -> datetime:
    """Raises unless the collateral is authentic, in date and this platform's. Gives its end."""
    info = read_tcb_info(collateral, now)
    identity = read_qe_identity(collateral, now)
    leaf, issuer, anchor = chain
    pck_end = check_revocation(collateral.pck_crl, issuer, (leaf,), now, "pck_crl")
    root_end = check_revocation(collateral.root_ca_crl, anchor, (issuer,), now, "root_crl")
    signers = verify_documents(collateral, now, root)
    for signer in signers:
        check_revocation(collateral.root_ca_crl, anchor, signer[:1], now, "root_crl")
    for field, found, wanted in (
        ("FMSPC", info.fmspc, platform.fmspc),
        ("PCE id", info.pce_id, platform.pce_id),
    ):
        if bytes.fromhex(found) != wanted:
            raise EvidenceError(
                "tdx_fmspc_mismatch",
                f"tcb_info is for {field} {found}, the PCK certificate has {wanted.hex()}",
            )
    check_qe(quote.qe_report, identity)
    certificates = earliest_end([*chain, *signers[0], *signers[1]])
    return min(pck_end, root_end, info.next_update, identity.next_update, certificates)
