"""Certificates and revocation lists of self-made vendors, for chains that no real vendor signs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

BEGIN = datetime(2025, 1, 1, tzinfo=UTC)
END = datetime(2035, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate and its key."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(Encoding.PEM).decode()


def issue(
    name: str,
    issuer: Issued | None = None,
    *,
    ca: bool = True,
    curve: ec.EllipticCurve | None = None,
    digest: hashes.HashAlgorithm | None = None,
    begin: datetime = BEGIN,
    end: datetime = END,
    key: ec.EllipticCurvePrivateKey | None = None,
    public: CertificatePublicKeyTypes | None = None,
    cert_sign: bool | None = None,
    path_length: int | None = None,
    serial_number: int | None = None,
    extra: Sequence[tuple[x509.ExtensionType, bool]] = (),
) -> Issued:
    """One certificate; without an issuer it signs itself. P-256 and SHA-256 by default.

    `public`: another key than its own stands in it.
    """
    key = key or ec.generate_private_key(curve or ec.SECP256R1())
    public = public or key.public_key()
    may_issue = ca if cert_sign is None else cert_sign
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(issuer.certificate.subject if issuer else _name(name))
        .public_key(public)
        .serial_number(serial_number or x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca, path_length if ca else None), critical=True)
        .add_extension(_usage(may_issue, signs=not ca), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(
                (issuer.key if issuer else key).public_key()
            ),
            critical=False,
        )
    )
    for extension, critical in extra:
        builder = builder.add_extension(extension, critical=critical)
    signer = issuer.key if issuer else key
    return Issued(key, builder.sign(signer, digest or hashes.SHA256()))


def revocation_list(
    issuer: Issued,
    revoked: Sequence[x509.Certificate] = (),
    *,
    begin: datetime = BEGIN,
    end: datetime = END,
    key: ec.EllipticCurvePrivateKey | None = None,
) -> bytes:
    """DER; `key`: another one than the issuer's signs it."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.certificate.subject)
        .last_update(begin)
        .next_update(end)
        .add_extension(x509.CRLNumber(1), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()),
            critical=False,
        )
    )
    for certificate in revoked:
        builder = builder.add_revoked_certificate(
            x509.RevokedCertificateBuilder()
            .serial_number(certificate.serial_number)
            .revocation_date(begin)
            .build()
        )
    return builder.sign(key or issuer.key, hashes.SHA256()).public_bytes(Encoding.DER)


def _name(common: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, common),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "A vendor of the tests"),
        ]
    )


def _usage(may_issue: bool, *, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=may_issue,
        crl_sign=may_issue,
        encipher_only=False,
        decipher_only=False,
    )
