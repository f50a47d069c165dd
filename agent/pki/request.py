"""An agent's own key, its request for a certificate, and the certificate put in its place.

The key never leaves the host and is not replaced by a renewal: certificate and key are two files,
and no crash may leave one that does not fit the other.
"""

from __future__ import annotations

import datetime as dt
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from agent.config import TlsConfig
from agent.host.files import (
    FileAbsentError,
    StorageError,
    make_private_directory,
    read_bounded,
    write_atomic,
)
from agent.pki.authority import new_key, pem_of
from agent.pki.facts import TrustError
from agent.pki.inspection import check_issued, check_lists
from agent.pki.names import host_uri

_MAX_BYTES = 1 << 20
_CLOCKS_DIFFER = dt.timedelta(minutes=5)
_SPKI = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def request_certificate(tls: TlsConfig, host_id: str) -> str:
    """A request in PEM form, signed by the own key; that is made first if it is not there.

    The key is durable before the request exists, so that a request told again is for the same.
    """
    key = _own_key(tls)
    name = x509.UniformResourceIdentifier(host_uri(tls.trust_domain, host_id))
    csr = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .add_extension(x509.SubjectAlternativeName([name]), critical=False)
        .sign(key, SHA256())
    )
    return csr.public_bytes(Encoding.PEM).decode()


def install(
    tls: TlsConfig, host_id: str, certificate_pem: str, ca_pem: str, crl_pem: str | None
) -> None:
    """Put a certificate in its place, last of all; what is trusted already stays as it is.

    What was given must be this host's, for its key, issued by an authority that is trusted here
    (or, where none is yet, that came with it), alive, and newer than what it replaces. Raises
    TrustError, with nothing changed, where it is not.
    """
    try:
        chain = x509.load_pem_x509_certificates(certificate_pem.encode())
        authorities = x509.load_pem_x509_certificates(ca_pem.encode())
    except ValueError as error:
        raise TrustError("certificate", "what was given is not in PEM form") from error
    trusted = authorities
    if tls.ca.exists():
        trusted = x509.load_pem_x509_certificates(read_bounded(tls.ca, _MAX_BYTES))
        if not set(authorities) & set(trusted):
            raise TrustError("ca", "what was given is another authority than the one trusted here")
    check_issued(chain, trusted, host_uri(tls.trust_domain, host_id))
    key = _own_key(tls)
    if chain[0].public_key().public_bytes(*_SPKI) != key.public_key().public_bytes(*_SPKI):
        raise TrustError("certificate", "what was given is for another key")
    _check_life(tls.certificate, chain[0], dt.datetime.now(dt.UTC))
    crl = crl_pem if tls.crl is not None and not tls.crl.exists() else None
    if crl is not None:
        check_lists(crl.encode(), trusted)
    if not tls.ca.exists():
        _put(tls.ca, ca_pem)
    if crl is not None and tls.crl is not None:
        _put(tls.crl, crl)
    _put(tls.certificate, certificate_pem)


def _check_life(place: Path, given: x509.Certificate, now: dt.datetime) -> None:
    """That it is alive, and begins or ends later than what is there, if that can be read."""
    if not given.not_valid_before_utc - _CLOCKS_DIFFER <= now < given.not_valid_after_utc:
        raise TrustError("certificate", "what was given is not valid now; see the clocks")
    try:
        there = x509.load_pem_x509_certificates(read_bounded(place, _MAX_BYTES))[0]
    except (StorageError, ValueError):
        return
    if _life(given) <= _life(there):
        raise TrustError("certificate", "what was given is not newer than what is here")


def _life(certificate: x509.Certificate) -> tuple[dt.datetime, dt.datetime]:
    return certificate.not_valid_before_utc, certificate.not_valid_after_utc


def _own_key(tls: TlsConfig) -> ec.EllipticCurvePrivateKey:
    try:
        key = load_pem_private_key(read_bounded(tls.key, _MAX_BYTES), None)
    except FileAbsentError:
        made = new_key()
        _put(tls.key, pem_of(made).decode(), mode=0o600)
        return made
    except (ValueError, TypeError) as error:
        raise TrustError("key", f"{tls.key} holds no plain private key in PEM form") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TrustError("key", f"{tls.key} is of another kind than P-256")
    return key


def _put(path: Path, text: str, *, mode: int = 0o644) -> None:
    if not path.parent.is_dir():
        make_private_directory(path.parent)
    write_atomic(path, text.encode(), mode=mode)
