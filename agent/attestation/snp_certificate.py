"""AMD's certificates: read strictly, and the one signature scheme that they are signed with.

Source: RFC 5280; Versioned Chip Endorsement Key certificate and KDS interface (57230). AMD signs
with RSA-4096, PSS, SHA-384 and a salt of 48 bytes only: nothing else is accepted.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.exceptions import InternalError, InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key

from agent.attestation import der
from agent.attestation.evidence import EvidenceError

_MAX_BYTES = 8192
_PSS_SHA384 = (
    "06092a864886f70d01010a{}a00f300d06096086480165030402020500"
    "a11c301a06092a864886f70d010108300d06096086480165030402020500a203020130"
)
# With and without the trailer field, whose default value AMD's older certificates spell out.
_ALGORITHMS = frozenset(
    {
        bytes.fromhex("3041" + _PSS_SHA384.format("3034")),
        bytes.fromhex("3046" + _PSS_SHA384.format("3039") + "a303020101"),
    }
)
_COMMON_NAME = "2.5.4.3"
_BASIC_CONSTRAINTS = "2.5.29.19"
_KEY_USAGE = "2.5.29.15"
_UNDERSTOOD = frozenset({_BASIC_CONSTRAINTS, _KEY_USAGE})
_DIGITAL_SIGNATURE, _KEY_CERT_SIGN, _CRL_SIGN = 0x80, 0x04, 0x02
_UNREADABLE = (ValueError, TypeError, UnsupportedAlgorithm, InternalError)
_SHA384 = hashes.SHA384()
_PSS = padding.PSS(padding.MGF1(_SHA384), salt_length=48)


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """One certificate. Names are DER; `extensions` are values by OID."""

    what: str
    tbs: bytes
    signature: bytes
    serial: int
    issuer: bytes
    subject: bytes
    common_name: str
    not_before: dt.datetime
    not_after: dt.datetime
    spki: bytes
    extensions: Mapping[str, bytes]

    @property
    def spki_sha256(self) -> str:
        return hashlib.sha256(self.spki).hexdigest()


@dataclass(frozen=True, slots=True)
class SignedBytes:
    """What certificates and revocation lists are: signed bytes, and the signature."""

    tbs: bytes
    signature: bytes


def parse_certificate(data: bytes, what: str) -> Certificate:
    """One DER certificate, `what` being its name in print. Raises `certificate_malformed`."""
    try:
        return _certificate(data, what)
    except der.DerError as error:
        raise EvidenceError("certificate_malformed", f"the {what}: {error}") from error


def split_signed(data: bytes, max_bytes: int) -> SignedBytes:
    """The outermost frame. Raises DerError, also for another signature algorithm."""
    if len(data) > max_bytes:
        raise der.DerError(f"it is longer than {max_bytes} bytes")
    fields = der.Fields(der.sole(data, der.SEQUENCE, "the whole").content)
    tbs = fields.take(der.SEQUENCE, "what is signed").raw
    require_algorithm(fields.take(der.SEQUENCE, "the signature's algorithm").raw)
    bits = fields.take(der.BIT_STRING, "the signature").content
    fields.end("the whole")
    return SignedBytes(tbs, der.octets(bits, "the signature"))


def require_algorithm(raw: bytes) -> None:
    """Raises DerError unless it is AMD's."""
    if raw not in _ALGORITHMS:
        raise der.DerError("it is not signed with RSA-PSS, SHA-384 and a salt of 48 bytes")


def parse_extensions(content: bytes, understood: frozenset[str]) -> dict[str, bytes]:
    """Values by OID. Raises DerError for one given twice, or critical and not understood."""
    found: dict[str, bytes] = {}
    extensions = der.Fields(der.sole(content, der.SEQUENCE, "the extensions").content)
    while extensions.left:
        fields = der.Fields(extensions.take(der.SEQUENCE, "an extension").content)
        oid = der.oid(fields.take(der.OID, "an extension's name").content, "an extension's name")
        critical = fields.optional(der.BOOLEAN, oid)
        if critical is not None and critical.content != b"\xff":
            raise der.DerError(f"extension {oid} is critical in an unknown way")
        value = fields.take(der.OCTET_STRING, oid).content
        fields.end(oid)
        if oid in found:
            raise der.DerError(f"extension {oid} is there twice")
        if critical is not None and oid not in understood:
            raise der.DerError(f"extension {oid} is critical and not understood")
        found[oid] = value
    return found


def ca_key(certificate: Certificate, below: int) -> rsa.RSAPublicKey:
    """The key of a certificate that may issue others, with so many authorities below it.

    Raises EvidenceError `certificate_malformed`.
    """
    try:
        _require_authority(certificate.extensions, below)
    except der.DerError as error:
        raise _wrong(certificate, str(error)) from error
    key = _key(certificate)
    if not isinstance(key, rsa.RSAPublicKey) or key.key_size != 4096:
        raise _wrong(certificate, "its key is not RSA of 4096 bits")
    return key


def _require_authority(extensions: Mapping[str, bytes], below: int) -> None:
    """RFC 5280, 4.2.1.9 and 4.2.1.3: a key whose usage is not stated may be used for anything."""
    constraints = der.sole(
        extensions.get(_BASIC_CONSTRAINTS, b""), der.SEQUENCE, "the basic constraints"
    )
    fields = der.Fields(constraints.content)
    if fields.take(der.BOOLEAN, "whether it is an authority").content != b"\xff":
        raise der.DerError("it is not an authority's")
    longest = fields.optional(der.INTEGER, "the path length")
    if longest is not None and der.integer(longest.content, "the path length") < below:
        raise der.DerError("its path length allows no authority below it")
    fields.end("the basic constraints")
    if not _may(extensions, _KEY_CERT_SIGN):
        raise der.DerError("its key may not sign certificates")


def _may(extensions: Mapping[str, bytes], use: int) -> bool:
    """Whether the key may be used so; `use` is a bit of the first byte of KeyUsage."""
    if _KEY_USAGE not in extensions:
        return True
    bits = der.sole(extensions[_KEY_USAGE], der.BIT_STRING, "the key usage").content
    if not 2 <= len(bits) <= 3 or bits[0] > 7:
        raise der.DerError("the key usage is none")
    return bool(bits[1] & use)


def may_sign_crls(certificate: Certificate) -> bool:
    """Of an authority whose `ca_key` was taken."""
    return _may(certificate.extensions, _CRL_SIGN)


def chip_key(certificate: Certificate) -> ec.EllipticCurvePublicKey:
    """The key of a VCEK or VLEK. Raises EvidenceError `certificate_malformed`."""
    try:
        _require_leaf(certificate.extensions)
    except der.DerError as error:
        raise _wrong(certificate, str(error)) from error
    key = _key(certificate)
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp384r1":
        raise _wrong(certificate, "its key is not on P-384")
    return key


def _require_leaf(extensions: Mapping[str, bytes]) -> None:
    """AMD's leaves state neither; one that does must be no authority's, and may sign."""
    if _BASIC_CONSTRAINTS in extensions:
        constraints = der.sole(
            extensions[_BASIC_CONSTRAINTS], der.SEQUENCE, "the basic constraints"
        )
        if constraints.content:
            raise der.DerError("it is an authority's, or its basic constraints cannot be read")
    if not _may(extensions, _DIGITAL_SIGNATURE):
        raise der.DerError("its key may not sign reports")


def is_signed_by(key: rsa.RSAPublicKey, signed: SignedBytes | Certificate) -> bool:
    """Whether the signature holds."""
    try:
        key.verify(signed.signature, signed.tbs, _PSS, _SHA384)
    except InvalidSignature:
        return False
    return True


def _certificate(data: bytes, what: str) -> Certificate:
    signed = split_signed(data, _MAX_BYTES)
    fields = der.Fields(der.sole(signed.tbs, der.SEQUENCE, "what is signed").content)
    if fields.take(0xA0, "the version").content != b"\x02\x01\x02":
        raise der.DerError("its version is not 3")
    serial = der.integer(fields.take(der.INTEGER, "the serial").content, "the serial")
    require_algorithm(fields.take(der.SEQUENCE, "the inner algorithm").raw)
    issuer = fields.take(der.SEQUENCE, "the issuer").raw
    validity = der.Fields(fields.take(der.SEQUENCE, "the validity").content)
    not_before = der.moment(validity, "the beginning of its validity")
    not_after = der.moment(validity, "the end of its validity")
    validity.end("the validity")
    subject = fields.take(der.SEQUENCE, "the subject")
    spki = fields.take(der.SEQUENCE, "the key").raw
    extensions = fields.take(0xA3, "the extensions").content
    fields.end("what is signed")
    return Certificate(
        what=what,
        tbs=signed.tbs,
        signature=signed.signature,
        serial=serial,
        issuer=issuer,
        subject=subject.raw,
        common_name=_common_name(subject.content),
        not_before=not_before,
        not_after=not_after,
        spki=spki,
        extensions=parse_extensions(extensions, _UNDERSTOOD),
    )


def _common_name(name: bytes) -> str:
    names: list[str] = []
    parts = der.Fields(name)
    while parts.left:
        attributes = der.Fields(parts.take(der.SET, "a part of the subject").content)
        while attributes.left:
            fields = der.Fields(attributes.take(der.SEQUENCE, "an attribute").content)
            oid = der.oid(fields.take(der.OID, "an attribute's name").content, "an attribute")
            if oid != _COMMON_NAME:
                continue
            tag = der.PRINTABLE_STRING if fields.holds(der.PRINTABLE_STRING) else der.UTF8_STRING
            names.append(der.text(fields.take(tag, "the common name"), "the common name"))
            fields.end("the common name")
    if len(names) != 1:
        raise der.DerError(f"its subject has {len(names)} common names")
    return names[0]


def _key(certificate: Certificate) -> object:
    try:
        return load_der_public_key(certificate.spki)
    except _UNREADABLE as error:
        raise _wrong(certificate, "its key cannot be read") from error


def _wrong(certificate: Certificate, why: str) -> EvidenceError:
    return EvidenceError("certificate_malformed", f"the {certificate.what}: {why}")
