"""TCB info and QE identity: signed by Intel's TCB signing key, in date, of this platform.

Source: Intel SGX/TDX Provisioning Certification Service API, version 4 (TCB info version 3, TD_QE
identity version 2). A signature is over the inner document's very bytes.
"""

from __future__ import annotations

from datetime import datetime
from functools import lru_cache
from typing import Annotated, TypeVar

import msgspec
from cryptography.hazmat.primitives import hashes

from agent.attestation.ecdsa import signature_holds
from agent.attestation.evidence import EvidenceError
from agent.attestation.pinned_chain import Chain, ChainRules, ec_key, load_chain, verify_chain
from agent.attestation.tdx.collateral import MAX_DOCUMENT_BYTES, TdxCollateral, malformed
from agent.attestation.tdx.quote import QeReport
from agent.attestation.tdx.signatures import intel_rules
from agent.strict_json import StrictJsonError, decode_strict_json

Moment = Annotated[datetime, msgspec.Meta(tz=True)]
Hex = Annotated[str, msgspec.Meta(pattern=r"^([0-9a-fA-F]{2})+$")]

_T = TypeVar("_T")


class TcbInfo(msgspec.Struct, frozen=True, rename="camel"):
    """What is judged here; the levels are the library's part. Intel may add members."""

    id: str
    version: int
    issue_date: Moment
    next_update: Moment
    fmspc: Hex
    pce_id: Hex
    tcb_evaluation_data_number: int


class QeIdentity(msgspec.Struct, frozen=True, rename="camel"):
    """The quoting enclave that Intel stands for."""

    id: str
    version: int
    issue_date: Moment
    next_update: Moment
    tcb_evaluation_data_number: int
    miscselect: Hex
    miscselect_mask: Hex
    attributes: Hex
    attributes_mask: Hex
    mrsigner: Hex
    isvprodid: int


def read_tcb_info(collateral: TdxCollateral, now: datetime) -> TcbInfo:
    """Read a TDX TCB info of the known version that is in date. Not believed yet."""
    info = _read(collateral.tcb_info, TcbInfo, "tcb_info")
    if (info.id, info.version) != ("TDX", 3):
        raise EvidenceError(
            "tdx_tcb_info_kind", f"tcb_info is {info.id!r} version {info.version}, not 'TDX' 3"
        )
    _check_dates(info.issue_date, info.next_update, now, "tcb_info")
    return info


def read_qe_identity(collateral: TdxCollateral, now: datetime) -> QeIdentity:
    """Read a TD_QE identity of the known version that is in date. Not believed yet."""
    identity = _read(collateral.qe_identity, QeIdentity, "qe_identity")
    if (identity.id, identity.version) != ("TD_QE", 2):
        raise EvidenceError(
            "tdx_qe_identity_kind",
            f"qe_identity is {identity.id!r} version {identity.version}, not 'TD_QE' 2",
        )
    _check_dates(identity.issue_date, identity.next_update, now, "qe_identity")
    return identity


def verify_documents(collateral: TdxCollateral, now: datetime, root: str) -> tuple[Chain, Chain]:
    """Raises unless both are signed by a TCB signing key under the root. Gives their chains.

    Signatures are judged before chains: a changed document is told as that.
    """
    info, identity = _rules("tcb_info", root), _rules("qe_identity", root)
    info_chain = load_chain(collateral.tcb_info_issuer_chain.encode("ascii", "replace"), info)
    identity_chain = load_chain(
        collateral.qe_identity_issuer_chain.encode("ascii", "replace"), identity
    )
    if not _signed(info_chain, collateral.tcb_info_signature, collateral.tcb_info):
        raise _unsigned("tcb_info")
    if not _signed(identity_chain, collateral.qe_identity_signature, collateral.qe_identity):
        raise _unsigned("qe_identity")
    verify_chain(info_chain, info, now)
    verify_chain(identity_chain, identity, now)
    return info_chain, identity_chain


def check_qe(report: QeReport, identity: QeIdentity) -> None:
    """Raises unless the quoting enclave is the one of the identity."""
    for field, found, mask, wanted in (
        ("MISCSELECT", report.miscselect, identity.miscselect_mask, identity.miscselect),
        ("attributes", report.attributes, identity.attributes_mask, identity.attributes),
        ("MRSIGNER", report.mrsigner, "ff" * 32, identity.mrsigner),
    ):
        if _masked(found, bytes.fromhex(mask)) != bytes.fromhex(wanted):
            raise EvidenceError(
                "tdx_qe_identity_mismatch",
                f"the QE report's {field} is {found.hex()}, qe_identity wants {wanted}",
            )
    if report.isv_prod_id != identity.isvprodid:
        raise EvidenceError(
            "tdx_qe_identity_mismatch",
            f"the QE report's product id is {report.isv_prod_id}, not {identity.isvprodid}",
        )


def _rules(field: str, root: str) -> ChainRules:
    what = f"{field}'s issuer chain"
    return intel_rules(f"tdx_{field}_chain", what, 2, "Intel SGX TCB Signing", root)


def _unsigned(field: str) -> EvidenceError:
    return EvidenceError(
        f"tdx_{field}_signature", f"{field} is not signed by its issuer chain's key"
    )


# Keyed by the whole question. Few: whoever sends collateral can fill it with his own.
@lru_cache(maxsize=8)
def _signed(chain: Chain, signature: bytes, document: str) -> bool:
    return signature_holds(ec_key(chain[0]), signature, document.encode(), hashes.SHA256())


def _read(document: str, kind: type[_T], field: str) -> _T:
    if len(document) > MAX_DOCUMENT_BYTES:
        raise malformed(field, f"more than {MAX_DOCUMENT_BYTES} characters")
    try:
        return decode_strict_json(document.encode(), kind)
    except (StrictJsonError, UnicodeEncodeError) as error:
        raise malformed(field, str(error)) from error


def _check_dates(issued: datetime, next_update: datetime, now: datetime, field: str) -> None:
    if not issued <= now <= next_update:
        raise EvidenceError(
            f"tdx_{field}_expired", f"{field} is for {issued} to {next_update}, and it is {now}"
        )


def _masked(value: bytes, mask: bytes) -> bytes:
    if len(mask) != len(value):
        return b""
    return bytes(a & b for a, b in zip(value, mask, strict=True))
