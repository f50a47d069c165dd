"""Reads and checks the files of the fleet's certificates. Needs the library for certificates.

Facts are told only if all files fit: the key is the certificate's, the certificate says this
host's name and comes from one of the CAs, each list of revoked certificates is signed by one of
them. What does not fit is refused with the setting that names the file.
"""

from __future__ import annotations

import datetime as dt
import itertools
import re
from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import cast

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPublicKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from agent.config import TlsConfig
from agent.host.files import StorageError, read_bounded
from agent.host.peer_key import UnreadableKeyError, issuer_of
from agent.pki.facts import Facts, ListMark, TrustError
from agent.pki.names import host_uri, uri_of

_MAX_BYTES = 8 << 20
_CRL = re.compile(rb"-----BEGIN X509 CRL-----.*?-----END X509 CRL-----", re.DOTALL)


def inspect(tls: TlsConfig, host_id: str) -> Facts:
    """All files as they are now. Raises TrustError."""
    chain = _certificates(tls.certificate, "certificate")
    authorities = _certificates(tls.ca, "ca")
    name = host_uri(tls.trust_domain, host_id)
    check_issued(chain, authorities, name)
    _check_key(tls.key, chain[0])
    lists = []
    if tls.crl is not None:
        lists = check_lists(_read(tls.crl, "crl"), authorities, tls.crl)
    revoked: dict[str, frozenset[str]] = {}
    for one, _ in lists:
        issuer = sha256(_issuer(one)).hexdigest()
        serials = frozenset(f"{entry.serial_number:x}" for entry in one)
        revoked[issuer] = revoked.get(issuer, frozenset()) | serials
    return Facts(
        uri=name,
        since=chain[0].not_valid_before_utc,
        until=chain[0].not_valid_after_utc,
        authorities=frozenset(
            sha256(one.public_bytes(Encoding.DER)).hexdigest() for one in authorities
        ),
        revoked=revoked,
        crl_since=min((one.last_update_utc for one, _ in lists), default=None),
        crl_until=min((_until(one) for one, _ in lists), default=None),
        keys=frozenset(_key_of(one) for one in authorities),
        lists=_newest(lists),
    )


def _read(path: Path, setting: str) -> bytes:
    try:
        return read_bounded(path, _MAX_BYTES)
    except StorageError as error:
        raise TrustError(setting, str(error)) from error


def _certificates(path: Path, setting: str) -> tuple[x509.Certificate, ...]:
    try:
        return tuple(x509.load_pem_x509_certificates(_read(path, setting)))
    except ValueError as error:
        raise TrustError(setting, f"{path} holds no certificates in PEM form") from error


def check_issued(
    chain: Sequence[x509.Certificate], authorities: Iterable[x509.Certificate], name: str
) -> None:
    """That a chain says this name alone and leads to one of the authorities. Raises TrustError."""
    found = certificate_uri(chain[0])
    if found != name:
        raise TrustError("certificate", f"it says {found or 'no single URI'}, not {name}")
    issued = any(_issued_by(chain[-1], one) for one in authorities)
    if not issued or not all(_issued_by(a, b) for a, b in itertools.pairwise(chain)):
        raise TrustError("certificate", "it was not issued by the authority in listen.tls.ca")


def certificate_uri(certificate: x509.Certificate) -> str | None:
    """Its only URI; None if it has none, or more than one."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None
    return uri_of(
        [("URI", uri) for uri in names.get_values_for_type(x509.UniformResourceIdentifier)]
    )


def _issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _check_key(path: Path, certificate: x509.Certificate) -> None:
    if path.exists() and path.stat().st_mode & 0o077:
        raise TrustError("key", f"{path} may be read by others; chmod 600 it")
    try:
        key = load_pem_private_key(_read(path, "key"), password=None)
    except (ValueError, TypeError) as error:
        raise TrustError("key", f"{path} holds no plain private key in PEM form") from error
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if key.public_key().public_bytes(*form) != certificate.public_key().public_bytes(*form):
        raise TrustError("key", "it is not the key of listen.tls.certificate")


def check_lists(
    data: bytes, authorities: Sequence[x509.Certificate], path: Path | None = None
) -> list[tuple[x509.CertificateRevocationList, x509.Certificate]]:
    """The lists in it, each with the authority that signed it. Raises TrustError."""
    where, found = path or "what was given", []
    for block in _CRL.findall(data):
        try:
            one = x509.load_pem_x509_crl(block)
        except ValueError as error:
            raise TrustError("crl", f"{where} holds a list that cannot be read") from error
        by = next((authority for authority in authorities if _signed_by(one, authority)), None)
        if by is None:
            raise TrustError("crl", "a list in it is not signed by the authority in listen.tls.ca")
        found.append((one, by))
    if not found:
        raise TrustError("crl", f"{where} holds no list of revoked certificates in PEM form")
    return found


def _newest(
    lists: Iterable[tuple[x509.CertificateRevocationList, x509.Certificate]],
) -> dict[str, ListMark]:
    found: dict[str, ListMark] = {}
    for one, authority in lists:
        key, mark = _key_of(authority), ListMark(number=_number(one), since=one.last_update_utc)
        if key not in found or found[key].before(mark):
            found[key] = mark
    return found


def _number(crl: x509.CertificateRevocationList) -> int | None:
    try:
        return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except x509.ExtensionNotFound:
        return None


def _key_of(certificate: x509.Certificate) -> str:
    spki = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return sha256(certificate.public_key().public_bytes(*spki)).hexdigest()


def _signed_by(crl: x509.CertificateRevocationList, authority: x509.Certificate) -> bool:
    key = cast("CertificateIssuerPublicKeyTypes", authority.public_key())
    return crl.issuer == authority.subject and crl.is_signature_valid(key)


def _issuer(crl: x509.CertificateRevocationList) -> bytes:
    """As it stands there, to be compared with what stands in certificates."""
    try:
        return issuer_of(crl.public_bytes(Encoding.DER))
    except UnreadableKeyError as error:
        raise TrustError("crl", "a list in it is not of version 2") from error


def _until(crl: x509.CertificateRevocationList) -> dt.datetime:
    """A list without an end (RFC 5280 forbids it) has ended."""
    return crl.next_update_utc or crl.last_update_utc
