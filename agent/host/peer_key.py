"""Which key a TLS peer showed, and who issued its certificate, byte for byte.

The certificate is walked, not parsed: the TLS library has parsed it already and keeps its fields
to itself, and a parsing library would be the daemon's largest one, for the sake of two fields.
"""

from __future__ import annotations

import hashlib
from ssl import SSLObject, SSLSocket

_SEQUENCE = 0x30
_INTEGER = 0x02
_VERSION = 0xA0
# RFC 5280, 4.1: what stands in a TBSCertificate after the version, before an element.
_BEFORE_ISSUER = (_INTEGER, _SEQUENCE)  # serialNumber, signature
_BEFORE_KEY = (*_BEFORE_ISSUER, _SEQUENCE, _SEQUENCE, _SEQUENCE)  # issuer, validity, subject


class UnreadableKeyError(ValueError):
    """The peer showed no certificate, or one whose key cannot be found."""


def spki_sha256(tls: SSLObject | SSLSocket) -> str:
    """Hex digest of the key of the peer at the other end of this very TLS object.

    The certificate is not trusted, only read: that the peer holds the key was proved by the
    handshake. Raises UnreadableKeyError.
    """
    certificate = tls.getpeercert(binary_form=True)
    if not certificate:
        raise UnreadableKeyError("the TLS peer showed no certificate")
    return hashlib.sha256(spki_of(certificate)).hexdigest()


def spki_of(certificate: bytes) -> bytes:
    """The SubjectPublicKeyInfo of a DER certificate. Raises UnreadableKeyError."""
    return _after(certificate, _BEFORE_KEY)


def issuer_of(certificate: bytes) -> bytes:
    """The issuer's name of a DER certificate. Raises UnreadableKeyError.

    Also of a list of revoked ones (version 2): both begin alike (RFC 5280, 5.1).
    """
    return _after(certificate, _BEFORE_ISSUER)


def _after(certificate: bytes, before: tuple[int, ...]) -> bytes:
    """The sequence that follows these elements."""
    _, inside, end = _element(certificate, 0, len(certificate), _SEQUENCE)
    _, at, end = _element(certificate, inside, end, _SEQUENCE)
    if certificate[at : at + 1] == bytes((_VERSION,)):
        _, _, at = _element(certificate, at, end, _VERSION)
    for tag in before:
        _, _, at = _element(certificate, at, end, tag)
    begin, _, after = _element(certificate, at, end, _SEQUENCE)
    return certificate[begin:after]


def _element(data: bytes, at: int, end: int, tag: int) -> tuple[int, int, int]:
    """Where an element of this tag begins, where its content does, and where it is over."""
    if at + 2 > end or data[at] != tag:
        raise UnreadableKeyError("the TLS peer's certificate has no readable key")
    size, inside = data[at + 1], at + 2
    if size > 0x7F:  # the length's own length; DER has no indefinite one
        inside += size & 0x7F
        size = int.from_bytes(data[at + 2 : inside]) if 0x80 < size <= 0x84 else end
    if inside + size > end:
        raise UnreadableKeyError("the TLS peer's certificate has no readable key")
    return at, inside, inside + size
