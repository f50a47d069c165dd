"""Certificate chains that end in a pinned root.

Invariant: a chain is believed only if its last certificate's key is the pinned one and every
certificate in it is canonical PEM, within its dates, of the one curve and hash, issued by the next
one by name and signature, and every issuer is a CA. The certificates come with the evidence; only
the root's key is known here.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from itertools import pairwise

from cryptography import x509
from cryptography.exceptions import InternalError, InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtensionOID, NameOID

from agent.attestation.evidence import EvidenceError

MAX_CHAIN_BYTES = 32 << 10

_BLOCK = re.compile(
    rb"-----BEGIN CERTIFICATE-----\n([A-Za-z0-9+/=\n]+\n)-----END CERTIFICATE-----(?:\n|\Z)"
)
# What cryptography raises where a certificate, a part of it, or a revocation list cannot be read.
UNREADABLE = (
    ValueError,
    TypeError,  # a name whose value is of a kind that its attribute cannot have
    UnsupportedAlgorithm,
    InternalError,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
    Warning,  # it warns of some malformed parts, which raises where warnings are errors
)
_UNDERSTOOD = frozenset({ExtensionOID.BASIC_CONSTRAINTS, ExtensionOID.KEY_USAGE})

Chain = tuple[x509.Certificate, ...]


@dataclass(frozen=True, slots=True)
class ChainRules:
    """What a chain must be; `what` it is called in words.

    Refusals have the codes `<prefix>_malformed | incomplete | root | invalid | expired`.
    `root_spki_sha256`: lower-case hex over the DER SubjectPublicKeyInfo. `leaf_name`: the common
    name that tells a vendor's leaves apart; None where it varies with the device.
    """

    prefix: str
    what: str
    root_spki_sha256: str
    curve: str
    digest: str
    lengths: range
    leaf_name: str | None = None


@lru_cache(maxsize=64)
def load_chain(pem: bytes, rules: ChainRules) -> Chain:
    """Certificates from the leaf to the root, out of canonical PEM with nothing between them.

    Not believed yet; but their keys are of the one curve.
    """
    if len(pem) > MAX_CHAIN_BYTES:
        raise _refusal(rules, "malformed", f"more than {MAX_CHAIN_BYTES} bytes of certificates")
    chain: list[x509.Certificate] = []
    at = 0
    while at < len(pem):
        block = _BLOCK.match(pem, at)
        if block is None:
            what = f"no PEM certificate at byte {at}, after {len(chain)}"
            raise _refusal(rules, "malformed", what)
        chain.append(_certificate(block[1], len(chain), rules))
        at = block.end()
    if len(chain) not in rules.lengths:
        raise _refusal(rules, "incomplete", f"{len(chain)} certificates, {_wanted(rules)} needed")
    return tuple(chain)


def verify_chain(chain: Chain, rules: ChainRules, now: datetime) -> None:
    """Raises unless the invariant of this module holds at `now` (aware)."""
    root = spki_sha256(chain[-1])
    if root != rules.root_spki_sha256:
        raise _refusal(rules, "root", f"ends in key sha256:{root}, which is not the pinned one")
    for depth, (child, issuer) in enumerate(pairwise((*chain, chain[-1]))):
        _check_link(child, issuer, depth, rules)
    for certificate in chain:
        begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if not begin <= now <= end:
            what = f"{name_of(certificate)!r} is valid from {begin} to {end}, and it is {now}"
            raise _refusal(rules, "expired", what)


def name_of(certificate: x509.Certificate) -> str:
    """The subject's common name, for messages and for telling roles apart."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if len(names) == 1 else certificate.subject.rfc4514_string()


def spki_sha256(certificate: x509.Certificate) -> str:
    """Hex over the DER SubjectPublicKeyInfo."""
    spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(spki).hexdigest()


def ec_key(certificate: x509.Certificate) -> ec.EllipticCurvePublicKey:
    """The key of a certificate of a loaded chain, whose curve was checked."""
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise TypeError(f"{name_of(certificate)!r} has no elliptic-curve key")
    return key


def key_usage(extensions: x509.Extensions) -> x509.KeyUsage | None:
    """What the key may be used for; None where that is not stated."""
    try:
        return extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return None


def earliest_end(certificates: Sequence[x509.Certificate]) -> datetime:
    """The first moment at which one of them is no longer valid."""
    return min(certificate.not_valid_after_utc for certificate in certificates)


# Keyed by both certificates' whole encodings, and only what holds is remembered.
@lru_cache(maxsize=256)
def _check_link(
    child: x509.Certificate, issuer: x509.Certificate, depth: int, rules: ChainRules
) -> None:
    """All of one certificate but its dates."""
    try:
        _check_form(child, depth, rules)
    except UNREADABLE as error:
        what = f"certificate {depth} has an extension that cannot be read"
        raise _refusal(rules, "invalid", what) from error
    try:
        child.verify_directly_issued_by(issuer)
    except (InvalidSignature, *UNREADABLE) as error:
        what = f"{name_of(child)!r} is not issued by {name_of(issuer)!r}"
        raise _refusal(rules, "invalid", what) from error


def _certificate(body: bytes, index: int, rules: ChainRules) -> x509.Certificate:
    try:
        der = base64.b64decode(body.replace(b"\n", b""), validate=True)
        if _lines(der) != body:
            raise _refusal(rules, "malformed", f"certificate {index} is not canonical PEM")
        certificate = x509.load_der_x509_certificate(der)
        # The signature's count of unused bits is outside of what is signed, and not looked at.
        if not der.endswith(b"\0" + certificate.signature):
            raise _refusal(rules, "malformed", f"certificate {index} is not canonical DER")
        # Read now what is read lazily, so that it cannot fail later.
        key, name, _ = certificate.public_key(), name_of(certificate), certificate.issuer
    except (*UNREADABLE, binascii.Error) as error:
        raise _refusal(rules, "malformed", f"certificate {index} cannot be read") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != rules.curve:
        raise _refusal(rules, "invalid", f"{name!r} has no {rules.curve} key")
    return certificate


def _lines(der: bytes) -> bytes:
    text = base64.b64encode(der)
    return b"".join(text[at : at + 64] + b"\n" for at in range(0, len(text), 64))


def _check_form(certificate: x509.Certificate, depth: int, rules: ChainRules) -> None:
    name = name_of(certificate)
    digest = certificate.signature_hash_algorithm
    if digest is None or digest.name != rules.digest:
        raise _refusal(rules, "invalid", f"{name!r} is not signed over {rules.digest}")
    if depth == 0 and rules.leaf_name not in {None, name}:
        raise _refusal(rules, "invalid", f"the leaf is {name!r}, not {rules.leaf_name!r}")
    extensions = certificate.extensions
    for extension in extensions:
        if extension.critical and extension.oid not in _UNDERSTOOD:
            what = f"{name!r} has the critical extension {extension.oid.dotted_string}"
            raise _refusal(rules, "invalid", what)
    if depth == 0:
        _check_leaf(extensions, name, rules)
    else:
        _check_issuer(extensions, name, depth, rules)


def _check_leaf(extensions: x509.Extensions, name: str, rules: ChainRules) -> None:
    for extension in extensions:
        value = extension.value
        if isinstance(value, x509.BasicConstraints) and value.ca:
            raise _refusal(rules, "invalid", f"the leaf {name!r} is a CA")
        if isinstance(value, x509.KeyUsage) and not value.digital_signature:
            raise _refusal(rules, "invalid", f"the leaf {name!r} may not sign")


def _check_issuer(extensions: x509.Extensions, name: str, depth: int, rules: ChainRules) -> None:
    """RFC 5280, 4.2.1.9 and 4.2.1.3: a key whose usage is not stated may be used for anything."""
    try:
        basic = extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound as error:
        what = f"{name!r} does not say that it may issue certificates"
        raise _refusal(rules, "invalid", what) from error
    usage = key_usage(extensions)
    if not basic.ca or (usage is not None and not usage.key_cert_sign):
        raise _refusal(rules, "invalid", f"{name!r} may not issue certificates")
    if basic.path_length is not None and basic.path_length < depth - 1:
        raise _refusal(rules, "invalid", f"{name!r} allows {basic.path_length} CAs below it")


def _wanted(rules: ChainRules) -> str:
    first, last = rules.lengths[0], rules.lengths[-1]
    return str(first) if first == last else f"{first} to {last}"


def _refusal(rules: ChainRules, kind: str, detail: str) -> EvidenceError:
    return EvidenceError(f"{rules.prefix}_{kind}", f"{rules.what}: {detail}")
