"""A self-made Intel: PCK certificates, quotes of both versions, collateral of every status."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from agent.attestation.pinned_chain import spki_sha256
from agent.attestation.tdx.collateral import TdxCollateral
from agent.attestation.tdx.quote import INTEL_QE_VENDOR_ID
from tests.fakes.certificates import Issued, issue, revocation_list

NOW = datetime(2026, 3, 1, tzinfo=UTC)
ISSUED = "2026-02-20T00:00:00Z"
NEXT_UPDATE = "2026-03-20T00:00:00Z"
FMSPC = bytes.fromhex("b0c06f000000")
MRSIGNER_QE = bytes.fromhex("dc9e2a7c6f948f17474e34a7fc43ed030f7c1563f1babddf6340c82e0e54a8c5")
CPU_SVN = bytes([3, 3, 2, 2, 4, 1, 0, 5, *bytes(8)])
PCE_SVN = 11

REPORT: Mapping[str, bytes] = {
    "tee_tcb_svn": bytes([6, 1, 3, *bytes(13)]),
    "mrseam": b"\x5b" * 48,
    "mrsignerseam": bytes(48),
    "seam_attributes": bytes(8),
    "td_attributes": bytes.fromhex("0000001000000000"),
    "xfam": bytes.fromhex("e702060000000000"),
    "mrtd": b"\x91" * 48,
    "mrconfigid": bytes(48),
    "mrowner": bytes(48),
    "mrownerconfig": bytes(48),
    "rtmr0": b"\x44" * 48,
    "rtmr1": b"\x01" * 48,
    "rtmr2": b"\x02" * 48,
    "rtmr3": bytes(48),
    "report_data": b"\xda" * 64,
}
REPORT_15: Mapping[str, bytes] = {
    **REPORT,
    "tee_tcb_svn2": bytes([7, 1, 3, *bytes(13)]),
    "mrservicetd": bytes(48),
}


class FakeIntel:
    """One hierarchy and one platform. `root`: the pin under which its evidence verifies."""

    def __init__(
        self,
        *,
        flags: tuple[bool, bool, bool] = (False, False, False),
        fmspc: bytes = FMSPC,
        sgx_type: bool = True,
    ) -> None:
        self.anchor = issue("Intel SGX Root CA")
        self.platform_ca = issue("Intel SGX PCK Platform CA", self.anchor)
        self.pck = issue(
            "Intel SGX PCK Certificate",
            self.platform_ca,
            ca=False,
            extra=[(_sgx_extension(fmspc, flags, sgx_type=sgx_type), False)],
        )
        self.tcb_signing = issue("Intel SGX TCB Signing", self.anchor, ca=False)
        self.root = spki_sha256(self.anchor.certificate)
        self._attestation_key = ec.generate_private_key(ec.SECP256R1())

    @property
    def pck_chain(self) -> str:
        return self.pck.pem + self.platform_ca.pem + self.anchor.pem

    def quote(
        self,
        *,
        version: int = 4,
        body_type: int = 3,
        report: Mapping[str, bytes] | None = None,
        qe_mrsigner: bytes = MRSIGNER_QE,
        qe_isv_svn: int = 6,
        chain: str | None = None,
        bound: bool = True,
    ) -> bytes:
        """Signed to the letter. `bound` False: the QE report is about another key.

        `body_type` is of version 5 alone: 2 is the older report, 3 the newer.
        """
        newer = version == 5 and body_type != 2
        fields = {**(REPORT_15 if newer else REPORT), **(report or {})}
        body = b"".join(fields.values())
        descriptor = struct.pack("<HI", body_type, len(body)) if version == 5 else b""
        header = struct.pack("<HHIHH", version, 2, 0x81, 0, 0) + INTEL_QE_VENDOR_ID + bytes(20)
        signed = header + descriptor + body
        key = _raw_key(self._attestation_key)
        auth = bytes(range(32))
        digest = hashlib.sha256(key + auth if bound else auth).digest()
        qe_report = _qe_report(qe_mrsigner, qe_isv_svn, digest)
        pem = (chain if chain is not None else self.pck_chain).encode()
        certification = qe_report + sign_raw(self.pck.key, qe_report)
        certification += struct.pack("<H", len(auth)) + auth
        certification += struct.pack("<HI", 5, len(pem)) + pem
        signature_data = sign_raw(self._attestation_key, signed) + key
        signature_data += struct.pack("<HI", 6, len(certification)) + certification
        return signed + struct.pack("<I", len(signature_data)) + signature_data

    def collateral(
        self,
        *,
        status: str = "UpToDate",
        advisories: Sequence[str] = (),
        tcb_info: Mapping[str, Any] | None = None,
        qe_identity: Mapping[str, Any] | None = None,
        signer: Issued | None = None,
        revoked_by_root: Sequence[x509.Certificate] = (),
        revoked_by_platform: Sequence[x509.Certificate] = (),
    ) -> TdxCollateral:
        """Documents of one status, signed by `signer` (the TCB signing key)."""
        signer = signer or self.tcb_signing
        info = json.dumps(
            _tcb_info(status, advisories) | dict(tcb_info or {}), separators=(",", ":")
        )
        identity = json.dumps(_QE_IDENTITY | dict(qe_identity or {}), separators=(",", ":"))
        chain = signer.pem + self.anchor.pem
        return TdxCollateral(
            pck_crl=revocation_list(self.platform_ca, revoked_by_platform),
            root_ca_crl=revocation_list(self.anchor, revoked_by_root),
            tcb_info_issuer_chain=chain,
            tcb_info=info,
            tcb_info_signature=sign_raw(signer.key, info.encode()),
            qe_identity_issuer_chain=chain,
            qe_identity=identity,
            qe_identity_signature=sign_raw(signer.key, identity.encode()),
        )


def sign_raw(
    key: ec.EllipticCurvePrivateKey, message: bytes, digest: hashes.HashAlgorithm | None = None
) -> bytes:
    """r ‖ s, big-endian, of the curve's size."""
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(digest or hashes.SHA256())))
    size = (key.key_size + 7) // 8
    return r.to_bytes(size, "big") + s.to_bytes(size, "big")


_QE_IDENTITY: dict[str, Any] = {
    "id": "TD_QE",
    "version": 2,
    "issueDate": ISSUED,
    "nextUpdate": NEXT_UPDATE,
    "tcbEvaluationDataNumber": 18,
    "miscselect": "00000000",
    "miscselectMask": "FFFFFFFF",
    "attributes": "11000000000000000000000000000000",
    "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
    "mrsigner": MRSIGNER_QE.hex().upper(),
    "isvprodid": 2,
    "tcbLevels": [
        {"tcb": {"isvsvn": 4}, "tcbDate": "2024-03-13T00:00:00Z", "tcbStatus": "UpToDate"}
    ],
}


def _tcb_info(status: str, advisories: Sequence[str]) -> dict[str, Any]:
    zero = "00" * 48
    module = {"mrsigner": zero, "attributes": "00" * 8, "attributesMask": "FF" * 8}
    module_level = {
        "tcb": {"isvsvn": 3},
        "tcbDate": "2024-03-13T00:00:00Z",
        "tcbStatus": "UpToDate",
    }
    level = {
        "tcb": {
            "sgxtcbcomponents": [{"svn": svn} for svn in CPU_SVN],
            "pcesvn": PCE_SVN,
            "tdxtcbcomponents": [{"svn": svn} for svn in REPORT["tee_tcb_svn"]],
        },
        "tcbDate": "2024-03-13T00:00:00Z",
        "tcbStatus": status,
        "advisoryIDs": list(advisories),
    }
    return {
        "id": "TDX",
        "version": 3,
        "issueDate": ISSUED,
        "nextUpdate": NEXT_UPDATE,
        "fmspc": FMSPC.hex().upper(),
        "pceId": "0000",
        "tcbType": 0,
        "tcbEvaluationDataNumber": 18,
        "tdxModule": module,
        "tdxModuleIdentities": [{"id": "TDX_01", **module, "tcbLevels": [module_level]}],
        "tcbLevels": [level],
    }


def _qe_report(mrsigner: bytes, isv_svn: int, digest: bytes) -> bytes:
    return (
        CPU_SVN
        + bytes(32)
        + bytes.fromhex("1500000000000000e700000000000000")
        + b"\xe5" * 32
        + bytes(32)
        + mrsigner
        + bytes(96)
        + struct.pack("<HH", 2, isv_svn)
        + bytes(60)
        + digest
        + bytes(32)
    )


def _raw_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    numbers = key.public_key().public_numbers()
    return numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")


def _sgx_extension(
    fmspc: bytes, flags: tuple[bool, bool, bool], *, sgx_type: bool
) -> x509.UnrecognizedExtension:
    """Intel SGX PCK Certificate specification, 1.3.5: a sequence of (OID, value)."""
    svns = [_pair(f"2.{n}", _integer(svn)) for n, svn in enumerate(CPU_SVN, 1)]
    tcb = [*svns, _pair("2.17", _integer(PCE_SVN)), _pair("2.18", _tlv(4, CPU_SVN))]
    configuration = [
        _pair(f"7.{n}", _tlv(1, b"\xff" if flag else b"\x00")) for n, flag in enumerate(flags, 1)
    ]
    value = _sequence(
        _pair("1", _tlv(4, b"\x81" * 16)),
        _pair("2", _sequence(*tcb)),
        _pair("3", _tlv(4, bytes(2))),
        _pair("4", _tlv(4, fmspc)),
        *([_pair("5", _tlv(10, b"\x01"))] if sgx_type else []),
        _pair("6", _tlv(4, b"\x07" * 16)),
        _pair("7", _sequence(*configuration)),
    )
    return x509.UnrecognizedExtension(x509.ObjectIdentifier(_SGX), value)


_SGX = "1.2.840.113741.1.13.1"


def _pair(tail: str, value: bytes) -> bytes:
    arcs = [int(arc) for arc in f"{_SGX}.{tail}".split(".")]
    encoded = bytes([40 * arcs[0] + arcs[1]]) + b"".join(_arc(arc) for arc in arcs[2:])
    return _sequence(_tlv(6, encoded), value)


def _arc(value: int) -> bytes:
    septets = [value & 0x7F]
    while value := value >> 7:
        septets.append(0x80 | value & 0x7F)
    return bytes(reversed(septets))


def _integer(value: int) -> bytes:
    return _tlv(2, bytes([value]))


def _sequence(*parts: bytes) -> bytes:
    return _tlv(0x30, b"".join(parts))


def _tlv(tag: int, value: bytes) -> bytes:
    size = len(value)
    if size < 0x80:
        return bytes([tag, size]) + value
    return bytes([tag, 0x82]) + size.to_bytes(2, "big") + value
