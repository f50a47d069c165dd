"""A certificate authority for a small fleet or a test: one key, one certificate, one list.

Everything is in one directory: `ca.pem`, `ca.key` (0600), `crl.pem`, `revoked.json`. ECDSA on
P-256, as every TLS library has it. Each file is replaced whole, so that a reader never sees half.
"""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import dataclass
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from agent.errors import AgentError
from agent.host.files import FileAbsentError, make_private_directory, read_bounded, write_atomic

_SKEW = dt.timedelta(minutes=5)  # clocks of a fleet differ by a little
_TRUST_DOMAIN = re.compile(r"[a-z0-9]([a-z0-9._-]{0,253}[a-z0-9])?", re.ASCII)
_MAX_BYTES = 8 << 20


class AuthorityError(AgentError):
    """The authority cannot do it. The text says why."""

    @property
    def code(self) -> str:
        return "authority_failed"


class _Revoked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    serial: str  # hex: more than 64 bits
    at: dt.datetime


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    trust_domain: str
    revoked: list[_Revoked] = []
    number: int = 0


@dataclass(slots=True)
class Authority:
    """One that is there. `record` says what it has revoked."""

    directory: Path
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    record: _Record

    @classmethod
    def create(cls, directory: Path, trust_domain: str, *, days: float = 3650) -> Authority:
        """Make one. Raises AuthorityError if one is there: its certificates would all be void."""
        if not _TRUST_DOMAIN.fullmatch(trust_domain):
            raise AuthorityError("a trust domain is a-z, 0-9, '.', '_' and '-'")
        make_private_directory(directory)
        if (directory / "ca.key").exists():
            raise AuthorityError(f"{directory} holds an authority already")
        key = new_key()
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{trust_domain} authority")])
        certificate = (
            _begun(name, name, key.public_key(), days)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs=True), critical=True)
            .sign(key, SHA256())
        )
        write_atomic(directory / "ca.pem", certificate.public_bytes(Encoding.PEM), mode=0o644)
        write_atomic(directory / "ca.key", pem_of(key))
        made = cls(directory, certificate, key, _Record(trust_domain))
        made.publish_crl()
        return made

    @classmethod
    def open(cls, directory: Path) -> Authority:
        """The one that is there. Raises AuthorityError."""
        try:
            certificate = x509.load_pem_x509_certificate(
                read_bounded(directory / "ca.pem", _MAX_BYTES)
            )
            key = load_pem_private_key(read_bounded(directory / "ca.key", _MAX_BYTES), None)
            record = msgspec.json.decode(
                read_bounded(directory / "revoked.json", _MAX_BYTES), type=_Record
            )
        except FileAbsentError as error:
            raise AuthorityError(f"{directory} holds no authority; make one: pki init") from error
        except (ValueError, TypeError, msgspec.DecodeError) as error:
            raise AuthorityError(f"the authority in {directory} is damaged") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise AuthorityError(f"the key in {directory} is of another kind than P-256")
        return cls(directory, certificate, key, record)

    @property
    def trust_domain(self) -> str:
        return self.record.trust_domain

    def ca_pem(self) -> bytes:
        """What everybody of the fleet trusts."""
        return self.certificate.public_bytes(Encoding.PEM)

    def issue(
        self,
        key: ec.EllipticCurvePublicKey,
        uri: str | None,
        *,
        days: float = 90,
        more_uris: tuple[str, ...] = (),
        dns_names: tuple[str, ...] = (),
    ) -> x509.Certificate:
        """A certificate for both ends of a connection, with that name."""
        uris = [*([uri] if uri is not None else []), *more_uris]
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(one) for one in uris]
        names += [x509.DNSName(one) for one in dns_names]
        common = (uri or "nobody").rsplit("/", 1)[-1][:64]
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])
        both = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
        begun = (
            _begun(subject, self.certificate.subject, key, days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(both), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()),
                critical=False,
            )
        )
        if names:
            begun = begun.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return begun.sign(self.key, SHA256())

    def sign_request(self, csr_pem: bytes, uri: str, *, days: float = 90) -> x509.Certificate:
        """A certificate for the key of a request. Its name is ours to say, not the request's.

        Raises AuthorityError for what is no request, or not signed by its own key.
        """
        try:
            request = x509.load_pem_x509_csr(csr_pem)
        except ValueError as error:
            raise AuthorityError("this is no certificate request in PEM form") from error
        key = request.public_key()
        if not request.is_signature_valid or not isinstance(key, ec.EllipticCurvePublicKey):
            raise AuthorityError("the request must be signed by its own P-256 key")
        return self.issue(key, uri, days=days)

    def revoke(self, serial: int) -> None:
        """For ever; publish the list then."""
        if not any(int(one.serial, 16) == serial for one in self.record.revoked):
            entry = _Revoked(f"{serial:x}", dt.datetime.now(dt.UTC))
            self.record = msgspec.structs.replace(
                self.record, revoked=[*self.record.revoked, entry]
            )

    def publish_crl(self, *, days: float = 30) -> Path:
        """Write a new list of what is revoked, good for so long."""
        self.record = msgspec.structs.replace(self.record, number=self.record.number + 1)
        now = dt.datetime.now(dt.UTC)
        crl = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(now - _SKEW + min(dt.timedelta(0), dt.timedelta(days=days)))
            .next_update(now + dt.timedelta(days=days))
            .add_extension(x509.CRLNumber(self.record.number), critical=False)
        )
        for one in self.record.revoked:
            crl = crl.add_revoked_certificate(
                x509.RevokedCertificateBuilder()
                .serial_number(int(one.serial, 16))
                .revocation_date(one.at)
                .build()
            )
        path = self.directory / "crl.pem"
        write_atomic(self.directory / "revoked.json", msgspec.json.encode(self.record))
        signed = crl.sign(self.key, SHA256())
        write_atomic(path, signed.public_bytes(Encoding.PEM), mode=0o644)
        return path


def new_key() -> ec.EllipticCurvePrivateKey:
    """ECDSA on P-256."""
    return ec.generate_private_key(ec.SECP256R1())


def pem_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    """For a file that nobody else may read."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _begun(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: float
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    until = now + dt.timedelta(days=days)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now, until) - _SKEW)
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
