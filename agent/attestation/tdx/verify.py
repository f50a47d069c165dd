"""A TDX quote and Intel's collateral in, claims out; or a refusal that says which part and why.

Invariant: claims exist only where every signature holds up to the pinned root, every document and
certificate is in date and not revoked, and the library agrees. Whether such claims are good enough
is the policy's part.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from cryptography import x509

from agent.attestation.evidence import EvidenceError
from agent.attestation.pinned_chain import Chain, earliest_end, name_of
from agent.attestation.port import CollateralUsed
from agent.attestation.roots import INTEL_ROOT
from agent.attestation.tdx.claims import PlatformClaims, TdxClaims
from agent.attestation.tdx.collateral import TdxCollateral
from agent.attestation.tdx.documents import (
    QeIdentity,
    TcbInfo,
    check_qe,
    read_qe_identity,
    read_tcb_info,
    verify_documents,
)
from agent.attestation.tdx.pck import read_platform
from agent.attestation.tdx.quote import TdxQuote, parse_quote
from agent.attestation.tdx.revocation import authentic_list, check_revocation, edition_of
from agent.attestation.tdx.signatures import verify_signatures
from agent.attestation.tdx.tcb import judge_tcb

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


@dataclass(frozen=True, slots=True)
class SignedQuote:
    """A quote whose signatures hold up to the root. Its `claims` have no TCB: no policy accepts
    them before `judge_collateral` has said what Intel thinks of the platform.
    """

    claims: TdxClaims
    quote: TdxQuote
    chain: Chain
    root_spki_sha256: str


def verify_signatures_of(
    quote: bytes, now: datetime, *, root_spki_sha256: str = INTEL_ROOT
) -> SignedQuote:
    """Verify what can be verified without collateral; `now` is aware. Raises EvidenceError."""
    parsed = parse_quote(quote)
    chain = verify_signatures(parsed, now, root_spki_sha256)
    claims = TdxClaims(
        quote_version=parsed.version,
        qe_vendor_id=parsed.qe_vendor_id,
        user_data=parsed.user_data,
        report=parsed.report,
        platform=read_platform(chain[0]),
        tcb=None,
        checked=_SIGNED,
        simulated=root_spki_sha256 != INTEL_ROOT,
    )
    return SignedQuote(claims, parsed, chain, root_spki_sha256)


def judge_collateral(signed: SignedQuote, collateral: TdxCollateral, now: datetime) -> TdxClaims:
    """The claims with the platform's TCB. Raises EvidenceError for collateral that is not good."""
    valid_until, used = _verify_collateral(
        signed.quote,
        signed.claims.platform,
        signed.chain,
        collateral,
        now,
        root=signed.root_spki_sha256,
    )
    tcb = judge_tcb(signed.quote, signed.chain, collateral, now, valid_until)
    return replace(signed.claims, tcb=tcb, judged=_JUDGED, collateral=used)


def verify_signed_quote(
    quote: bytes, now: datetime, *, root_spki_sha256: str = INTEL_ROOT
) -> TdxClaims:
    """Claims by the signatures alone: `tcb` is None, which no policy accepts."""
    return verify_signatures_of(quote, now, root_spki_sha256=root_spki_sha256).claims


def verify_quote(
    quote: bytes,
    collateral: TdxCollateral,
    now: datetime,
    *,
    root_spki_sha256: str = INTEL_ROOT,
) -> TdxClaims:
    """Verify everything; `now` is aware. Raises EvidenceError, and never claims in part."""
    signed = verify_signatures_of(quote, now, root_spki_sha256=root_spki_sha256)
    return judge_collateral(signed, collateral, now)


def _verify_collateral(
    quote: TdxQuote,
    platform: PlatformClaims,
    chain: Chain,
    collateral: TdxCollateral,
    now: datetime,
    *,
    root: str,
) -> tuple[datetime, tuple[CollateralUsed, ...]]:
    """Raises unless the collateral is authentic, in date and this platform's. Gives its end, and
    what it is.
    """
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
    end = min(pck_end, root_end, info.next_update, identity.next_update, certificates)
    pck_crl = authentic_list(collateral.pck_crl, issuer, "pck_crl")
    root_crl = authentic_list(collateral.root_ca_crl, anchor, "root_crl")
    return end, (
        CollateralUsed(
            kind="Intel PCK certificate",
            name=name_of(issuer),
            issued=leaf.not_valid_before_utc,
            until=leaf.not_valid_after_utc,
        ),
        _document("Intel TCB info", info),
        _document("Intel quoting enclave identity", identity),
        _list("Intel PCK revocation list", pck_crl),
        _list("Intel root revocation list", root_crl),
    )


def _document(kind: str, one: TcbInfo | QeIdentity) -> CollateralUsed:
    number = f"evaluation data number {one.tcb_evaluation_data_number}"
    return CollateralUsed(kind=kind, name=number, issued=one.issue_date, until=one.next_update)


def _list(kind: str, crl: x509.CertificateRevocationList) -> CollateralUsed:
    number, issued = edition_of(crl)
    return CollateralUsed(
        kind=kind, name=f"number {number}", issued=issued, until=crl.next_update_utc
    )
