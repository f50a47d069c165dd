"""ECDSA as evidence spells it: raw r ‖ s and raw x ‖ y, big-endian, of the curve's size."""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature


def signature_holds(
    key: ec.EllipticCurvePublicKey, signature: bytes, message: bytes, digest: hashes.HashAlgorithm
) -> bool:
    """Whether `signature` (r ‖ s) is the key's over the message."""
    half = (key.key_size + 7) // 8
    if len(signature) != 2 * half:
        return False
    r, s = (int.from_bytes(part, "big") for part in (signature[:half], signature[half:]))
    try:
        key.verify(encode_dss_signature(r, s), message, ec.ECDSA(digest))
    except InvalidSignature:
        return False
    return True


def p256_key(raw: bytes) -> ec.EllipticCurvePublicKey:
    """The key of 64 bytes x ‖ y. Raises ValueError where that is no point of the curve."""
    x, y = (int.from_bytes(part, "big") for part in (raw[:32], raw[32:]))
    return ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
