"""The TCB level of a platform, by `dcap-qvl`: a second opinion on everything, the first on levels.

The library verifies quote and collateral from the beginning by itself; both it and our own steps
must agree before anything is claimed. It is heavy, and imported where a quote is judged.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
from cryptography.hazmat.primitives.serialization import Encoding

from agent.attestation.evidence import EvidenceError
from agent.attestation.pinned_chain import Chain
from agent.attestation.tdx.claims import TcbClaims
from agent.attestation.tdx.collateral import TdxCollateral
from agent.attestation.tdx.quote import TdxQuote
from agent.attestation.tdx.report import TdReport
from agent.model.tcb_status import TcbStatus

# Our names of the report's fields → the library's.
_SPELLING = {
    "tee_tcb_svn": "tee_tcb_svn",
    "mrseam": "mr_seam",
    "mrsignerseam": "mr_signer_seam",
    "seam_attributes": "seam_attributes",
    "td_attributes": "td_attributes",
    "xfam": "xfam",
    "mrtd": "mr_td",
    "mrconfigid": "mr_config_id",
    "mrowner": "mr_owner",
    "mrownerconfig": "mr_owner_config",
    "rtmr0": "rt_mr0",
    "rtmr1": "rt_mr1",
    "rtmr2": "rt_mr2",
    "rtmr3": "rt_mr3",
    "report_data": "report_data",
    "tee_tcb_svn2": "tee_tcb_svn2",
    "mrservicetd": "mr_service_td",
}


class _Tcb(msgspec.Struct):
    status: str
    advisory_ids: tuple[str, ...]
    eval_data_number: int


class _Platform(msgspec.Struct):
    tcb_date_tag: int


class _Qe(msgspec.Struct):
    tcb_eval_data_number: int


class _Claims(msgspec.Struct):
    claims_version: Literal[1]
    tcb: _Tcb
    platform: _Platform
    qe: _Qe
    report: dict[str, dict[str, Any]]


def judge_tcb(
    quote: TdxQuote, chain: Chain, collateral: TdxCollateral, now: datetime, valid_until: datetime
) -> TcbClaims:
    """The status that Intel's collateral gives the platform, whichever it is.

    Raises `tdx_tcb_level` where the library refuses (no level covers the platform, a module or
    quoting enclave that Intel does not list), `tdx_parsers_disagree` where it read another report.
    """
    claims = _library_claims(quote, chain, collateral, now)
    _compare(quote.report, claims.report)
    try:
        status = TcbStatus(claims.tcb.status)
    except ValueError as error:
        raise EvidenceError(
            "tdx_tcb_status", f"TCB status {claims.tcb.status!r} is not a known one"
        ) from error
    return TcbClaims(
        status=status,
        advisory_ids=claims.tcb.advisory_ids,
        tcb_date=datetime.fromtimestamp(claims.platform.tcb_date_tag, UTC),
        evaluation_data_number=min(claims.tcb.eval_data_number, claims.qe.tcb_eval_data_number),
        valid_until=valid_until,
    )


def _library_claims(
    quote: TdxQuote, chain: Chain, collateral: TdxCollateral, now: datetime
) -> _Claims:
    import dcap_qvl

    # `claims_only`: every status and platform flag comes out, and our policy judges it by name.
    moment = int(now.timestamp())
    policy = dcap_qvl.QuotePolicy.claims_only(moment)
    pck_issuers = b"".join(one.public_bytes(Encoding.PEM) for one in chain[1:]).decode()
    documents = dcap_qvl.QuoteCollateralV3(
        pck_crl_issuer_chain=pck_issuers, **msgspec.structs.asdict(collateral)
    )
    verifier = dcap_qvl.QuoteVerifier(chain[-1].public_bytes(Encoding.DER))
    try:
        answer = verifier.verify_with_policy(quote.exact, documents, moment, policy)
    except ValueError as error:
        raise EvidenceError("tdx_tcb_level", f"dcap-qvl refuses the platform: {error}") from error
    try:
        return msgspec.json.decode(answer.to_json(), type=_Claims)
    except msgspec.DecodeError as error:
        raise EvidenceError("tdx_library", f"dcap-qvl's claims cannot be read: {error}") from error


def _compare(ours: TdReport, theirs: dict[str, dict[str, Any]]) -> None:
    """Two parsers must have read the same report."""
    body = next(iter(theirs.values()), {})
    read = body | body.get("base", {})
    for name, spelling in _SPELLING.items():
        value: bytes | None = getattr(ours, name)
        if value is not None and read.get(spelling) != value.hex():
            raise EvidenceError(
                "tdx_parsers_disagree",
                f"{name} is {value.hex()}, dcap-qvl read {read.get(spelling)}",
            )
