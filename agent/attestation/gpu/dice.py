"""The firmware digest (FWID) in a device's certificate: for which firmware it was made. Pure.

Source: TCG DICE Attestation Architecture, 6.1.1 (DiceTcbInfo). Hopper's devices have an older
form of NVIDIA's own under 2.23.133.5.4.1 (a composite device id: version, key, digest),
Blackwell's have a DiceTcbInfo under 2.23.133.5.4.1.1, whose first digest is that of the firmware
which signs. Either form is read under either name.
"""

from __future__ import annotations

from cryptography import x509

from agent.attestation import der
from agent.attestation.evidence import EvidenceError
from agent.attestation.gpu.spdm import DIGEST_BYTES

_NAMES = tuple(map(x509.ObjectIdentifier, ("2.23.133.5.4.1", "2.23.133.5.4.1.1")))
_SHA384 = "2.16.840.1.101.3.4.2.2"
_FWIDS = 0xA6  # of a DiceTcbInfo: [6] IMPLICIT SEQUENCE OF FWID
_CLASS, _CONTEXT, _NUMBER = 0xC0, 0x80, 0x1F  # of a tag


def firmware_digest(extensions: x509.Extensions) -> bytes | None:
    """SHA-384 of the firmware; None where the certificate states none in a known form.

    Raises EvidenceError `gpu_fwid` for one that states two.
    """
    found = {digest for name in _NAMES if (digest := _stated(extensions, name)) is not None}
    if len(found) > 1:
        raise EvidenceError("gpu_fwid", "the certificate states two firmware digests that differ")
    return next(iter(found), None)


def _stated(extensions: x509.Extensions, name: x509.ObjectIdentifier) -> bytes | None:
    try:
        value = extensions.get_extension_for_oid(name).value
    except x509.ExtensionNotFound:
        return None
    raw = value.value if isinstance(value, x509.UnrecognizedExtension) else b""
    try:
        content = der.sole(raw, der.SEQUENCE, "the DICE extension").content
        if content[:1] == bytes([der.INTEGER]):
            return _of_composite(content)
        return _of_tcb_info(content)
    except der.DerError:
        return None


def _of_composite(content: bytes) -> bytes:
    """INTEGER version, SubjectPublicKeyInfo, FWID."""
    fields = der.Fields(content)
    fields.take(der.INTEGER, "the version")
    fields.take(der.SEQUENCE, "the key")
    digest = _fwid(fields)
    fields.end("the composite device id")
    return digest


def _of_tcb_info(content: bytes) -> bytes | None:
    """Optional members [0] to [9], by rising numbers; of them [6], the digests."""
    fields, last, digest = der.Fields(content), -1, None
    while fields.left:
        element = fields.next("a member of DiceTcbInfo")
        number = element.tag & _NUMBER
        if element.tag & _CLASS != _CONTEXT or number <= last:
            raise der.DerError("DiceTcbInfo has a member out of its place")
        last = number
        if element.tag == _FWIDS:
            digest = _first_fwid(element.content)
    return digest


def _first_fwid(content: bytes) -> bytes:
    """Those after it are of other parts of the chain; they must be digests, too."""
    fields, digests = der.Fields(content), list[bytes]()
    while fields.left or not digests:
        digests.append(_fwid(fields))
    return digests[0]


def _fwid(outer: der.Fields) -> bytes:
    """SEQUENCE { the hash's name, OCTET STRING }."""
    fields = der.Fields(outer.take(der.SEQUENCE, "a firmware digest").content)
    name = der.oid(fields.take(der.OID, "the hash's name").content, "the hash's name")
    digest = fields.take(der.OCTET_STRING, "the digest").content
    fields.end("a firmware digest")
    if name != _SHA384 or len(digest) != DIGEST_BYTES:
        raise der.DerError("a firmware digest is no SHA-384")
    return digest
