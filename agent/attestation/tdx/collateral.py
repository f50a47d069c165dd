"""Intel's collateral: what a quote is judged against, exactly as Intel signed it. Pure.

Nothing here is believed: the documents stay the very bytes that were signed, and are verified with
the quote. Collateral authenticates itself, so that a bad source can only cause a refusal.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from agent.attestation.evidence import EvidenceError
from agent.strict_json import StrictJsonError, decode_strict_json

MAX_DOCUMENT_BYTES = 256 << 10

_T = TypeVar("_T")


class TdxCollateral(msgspec.Struct, frozen=True, kw_only=True):
    """Certificate chains are PEM, leaf first; CRLs DER; signatures r ‖ s, 64 bytes.

    `tcb_info` and `qe_identity` are the inner documents, byte for byte. The issuer of the PCK
    revocation list is in every quote's own chain, and is not asked for again.
    """

    pck_crl: bytes
    root_ca_crl: bytes
    tcb_info_issuer_chain: str
    tcb_info: str
    tcb_info_signature: bytes
    qe_identity_issuer_chain: str
    qe_identity: str
    qe_identity_signature: bytes


class _Flat(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    pck_crl_issuer_chain: str = ""
    root_ca_crl: str
    pck_crl: str
    tcb_info_issuer_chain: str
    tcb_info: str
    tcb_info_signature: str
    qe_identity_issuer_chain: str
    qe_identity: str
    qe_identity_signature: str


class _TcbInfoAnswer(msgspec.Struct, forbid_unknown_fields=True):
    tcb_info: msgspec.Raw = msgspec.field(name="tcbInfo")
    signature: str


class _QeIdentityAnswer(msgspec.Struct, forbid_unknown_fields=True):
    enclave_identity: msgspec.Raw = msgspec.field(name="enclaveIdentity")
    signature: str


def decode_collateral(raw: bytes) -> TdxCollateral:
    """From one flat JSON object, binary members in hex.

    Its `pck_crl_issuer_chain` is let through unread.
    """
    flat = _decode(raw, _Flat, "collateral")
    return TdxCollateral(
        pck_crl=_hex(flat.pck_crl, "pck_crl"),
        root_ca_crl=_hex(flat.root_ca_crl, "root_ca_crl"),
        tcb_info_issuer_chain=flat.tcb_info_issuer_chain,
        tcb_info=flat.tcb_info,
        tcb_info_signature=_hex(flat.tcb_info_signature, "tcb_info_signature"),
        qe_identity_issuer_chain=flat.qe_identity_issuer_chain,
        qe_identity=flat.qe_identity,
        qe_identity_signature=_hex(flat.qe_identity_signature, "qe_identity_signature"),
    )


def collateral_from_answers(
    *,
    tcb_info: bytes,
    tcb_info_issuer_chain: str,
    qe_identity: bytes,
    qe_identity_issuer_chain: str,
    pck_crl: bytes,
    root_ca_crl: bytes,
) -> TdxCollateral:
    """From the bodies that Intel's service answers with, and its chains, already unquoted."""
    info = _decode(tcb_info, _TcbInfoAnswer, "tcb_info")
    identity = _decode(qe_identity, _QeIdentityAnswer, "qe_identity")
    return TdxCollateral(
        pck_crl=pck_crl,
        root_ca_crl=root_ca_crl,
        tcb_info_issuer_chain=tcb_info_issuer_chain,
        tcb_info=_text(info.tcb_info, "tcb_info"),
        tcb_info_signature=_hex(info.signature, "tcb_info.signature"),
        qe_identity_issuer_chain=qe_identity_issuer_chain,
        qe_identity=_text(identity.enclave_identity, "qe_identity"),
        qe_identity_signature=_hex(identity.signature, "qe_identity.signature"),
    )


def malformed(field: str, reason: str) -> EvidenceError:
    """The one refusal of collateral that cannot be read."""
    return EvidenceError("tdx_collateral_malformed", f"{field}: {reason}")


def _decode(raw: bytes, kind: type[_T], field: str) -> _T:
    if len(raw) > MAX_DOCUMENT_BYTES:
        raise malformed(field, f"more than {MAX_DOCUMENT_BYTES} bytes")
    try:
        return decode_strict_json(raw, kind)
    except StrictJsonError as error:
        raise malformed(field, str(error)) from error


def _text(raw: msgspec.Raw, field: str) -> str:
    try:
        return bytes(raw).decode()
    except UnicodeDecodeError as error:
        raise malformed(field, "must be UTF-8") from error


def _hex(text: str, field: str) -> bytes:
    try:
        value = bytes.fromhex(text)
    except ValueError as error:
        raise malformed(field, "must be hex digits") from error
    if 2 * len(value) != len(text):
        raise malformed(field, "must be hex digits alone")
    return value
