"""Intel TDX quotes of versions 4 and 5: strictly cut, nothing believed yet. Pure.

Source: Intel TDX DCAP Quoting Library API, A.3 (version 4) and A.4 (version 5). Every size that
the quote declares must be the size that is there. Guests hand out a buffer longer than the quote:
zero bytes after its end are padding, anything else is refused.
"""

from __future__ import annotations

from dataclasses import dataclass

from agent.attestation.cursor import Cursor
from agent.attestation.evidence import EvidenceError
from agent.attestation.tdx.report import BODY_10_BYTES, BODY_15_BYTES, TdReport, parse_report

INTEL_QE_VENDOR_ID = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
MAX_QUOTE_BYTES = 64 << 10

_TEE_TDX = 0x81
_KEY_ECDSA_P256 = 2
_BODIES = {2: BODY_10_BYTES, 3: BODY_15_BYTES}  # version 5: the body's type and its size
_CERTIFIED_BY_QE_REPORT = 6
_CERTIFIED_BY_PCK_CHAIN = 5
_QE_REPORT_BYTES = 384


@dataclass(frozen=True, slots=True, kw_only=True)
class QeReport:
    """The quoting enclave's SGX report: `raw` is what the PCK key signed."""

    raw: bytes
    miscselect: bytes
    attributes: bytes
    mrsigner: bytes
    isv_prod_id: int
    isv_svn: int
    report_data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class TdxQuote:
    """`exact`: the quote without padding; `signed`: the bytes under the attestation key."""

    version: int
    exact: bytes
    signed: bytes
    qe_vendor_id: bytes
    user_data: bytes
    report: TdReport
    signature: bytes
    attestation_key: bytes
    qe_report: QeReport
    qe_report_signature: bytes
    qe_auth_data: bytes
    pck_chain: bytes


def parse_quote(data: bytes) -> TdxQuote:
    """Cut a quote. Raises EvidenceError, with the field, for whatever is not to the letter."""
    if len(data) > MAX_QUOTE_BYTES:
        raise EvidenceError("tdx_quote_size", f"the quote has more than {MAX_QUOTE_BYTES} bytes")
    cursor = Cursor(data, what="the quote", code="tdx_quote_truncated")
    version, vendor, user_data = _header(cursor)
    report = parse_report(cursor.take(_body_bytes(cursor, version), "the TD report"))
    signed = data[: cursor.position]
    signature_data = cursor.take(cursor.number(4, "signature length"), "signature data")
    exact = data[: cursor.position]
    _check_padding(data[cursor.position :], cursor.position)
    parts = Cursor(signature_data, what="the quote's signature data", code="tdx_quote_truncated")
    signature = parts.take(64, "signature")
    key = parts.take(64, "attestation key")
    certification = _certification(parts, _CERTIFIED_BY_QE_REPORT, "QE report certification data")
    inner = Cursor(certification, what="the QE certification data", code="tdx_quote_truncated")
    qe_report = _qe_report(inner.take(_QE_REPORT_BYTES, "QE report"))
    qe_signature = inner.take(64, "QE report signature")
    auth_data = inner.take(inner.number(2, "QE auth size"), "QE auth data")
    chain = _certification(inner, _CERTIFIED_BY_PCK_CHAIN, "PCK certificate chain")
    return TdxQuote(
        version=version,
        exact=exact,
        signed=signed,
        qe_vendor_id=vendor,
        user_data=user_data,
        report=report,
        signature=signature,
        attestation_key=key,
        qe_report=qe_report,
        qe_report_signature=qe_signature,
        qe_auth_data=auth_data,
        pck_chain=chain.removesuffix(b"\0"),  # some guests' chains are C strings
    )


def exact_size(data: bytes) -> int:
    """Where the quote ends by its own sizes: what follows is not part of it."""
    cursor = Cursor(data, what="the quote", code="tdx_quote_truncated")
    version, _vendor, _user_data = _header(cursor)
    cursor.take(_body_bytes(cursor, version), "the TD report")
    cursor.take(cursor.number(4, "signature length"), "signature data")
    return cursor.position


def _header(cursor: Cursor) -> tuple[int, bytes, bytes]:
    version = cursor.number(2, "version")
    if version not in {4, 5}:
        raise EvidenceError("tdx_quote_version", f"version is {version}; 4 and 5 are known")
    key_type = cursor.number(2, "attestation key type")
    if key_type != _KEY_ECDSA_P256:
        raise EvidenceError(
            "tdx_key_type", f"attestation key type is {key_type}, not {_KEY_ECDSA_P256} (P-256)"
        )
    tee_type = cursor.number(4, "TEE type")
    if tee_type != _TEE_TDX:
        raise EvidenceError("tdx_tee_type", f"TEE type is {tee_type:#x}, not {_TEE_TDX:#x} (TDX)")
    cursor.take(4, "QE and PCE SVN")
    vendor = cursor.take(16, "QE vendor")
    if vendor != INTEL_QE_VENDOR_ID:
        raise EvidenceError("tdx_qe_vendor", f"QE vendor is {vendor.hex()}, not Intel's")
    return version, vendor, cursor.take(20, "user data")


def _body_bytes(cursor: Cursor, version: int) -> int:
    """How long the TD report is; version 5 says its type and its size before it."""
    if version == 4:
        return BODY_10_BYTES
    kind = cursor.number(2, "body type")
    size = cursor.number(4, "body size")
    if kind not in _BODIES:
        raise EvidenceError("tdx_body_type", f"body type is {kind}; TD reports 2 and 3 are known")
    if size != _BODIES[kind]:
        raise EvidenceError("tdx_quote_size", f"body size is {size}, not {_BODIES[kind]}")
    return size


def _check_padding(rest: bytes, end: int) -> None:
    if any(rest):
        raise EvidenceError(
            "tdx_quote_trailing_data",
            f"{len(rest)} bytes follow the quote's end at {end}, and not all are zero",
        )


def _certification(cursor: Cursor, kind: int, field: str) -> bytes:
    """Certification data of one type, which must be the rest of what contains it."""
    found = cursor.number(2, f"type of {field}")
    if found != kind:
        raise EvidenceError("tdx_certification_type", f"{field}: type is {found}, not {kind}")
    data = cursor.take(cursor.number(4, f"size of {field}"), field)
    cursor.end("tdx_quote_size")
    return data


def _qe_report(raw: bytes) -> QeReport:
    """Source: Intel SDM 3D, 38.15 (REPORT); 384 bytes, of which these are judged."""
    return QeReport(
        raw=raw,
        miscselect=raw[16:20],
        attributes=raw[48:64],
        mrsigner=raw[128:160],
        isv_prod_id=int.from_bytes(raw[256:258], "little"),
        isv_svn=int.from_bytes(raw[258:260], "little"),
        report_data=raw[320:384],
    )
