"""The certificates of a simulated SEV-SNP processor: ARK, ASK and VCEK, made once an installation.

They are what a genuine Milan processor's are (RSA-4096 with PSS, SHA-384 and 48 bytes of salt; a
P-384 VCEK with AMD's extensions for TCB and hardware id), so that the ordinary verifier takes them
with another root. Invariant: every subject says that nothing about it is confidential; the private
keys of ARK and ASK are forgotten once each has signed, so that no other VCEK can ever be made.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import secrets
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import NameOID

from agent.config import SIMULATED
from agent.errors import AgentError
from agent.host.files import FileAbsentError, read_bounded, write_atomic

RSA_BITS = 4096
CHIP_ID_BYTES = 64
_MAX_BYTES = 64 << 10
_BACKDATED = dt.timedelta(days=1)  # a guest's or a client's clock may be behind
_ROOT_LIFE = dt.timedelta(days=20 * 365)
_VCEK_LIFE = dt.timedelta(days=7 * 365)
_PSS = padding.PSS(mgf=padding.MGF1(hashes.SHA384()), salt_length=48)

_AMD = "1.3.6.1.4.1.3704.1"
_STRUCT_VERSION = b"\x02\x01\x00"
_PRODUCT = b"\x16\x08Milan-B0"  # an IA5String
_HARDWARE_ID = x509.ObjectIdentifier(f"{_AMD}.4")


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedTcb:
    """Security patch levels of a Milan."""

    bootloader: int
    tee: int
    snp: int
    microcode: int

    def to_bytes(self) -> bytes:
        """The 8 bytes of a report: `[bootloader, tee, 0, 0, 0, 0, snp, microcode]`."""
        return bytes((self.bootloader, self.tee, 0, 0, 0, 0, self.snp, self.microcode))


TCB = SimulatedTcb(bootloader=4, tee=0, snp=24, microcode=219)  # recent on Milan


class SimulatedChainError(AgentError):
    """The file of the simulated processor does not hold what was once written there."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(
            f"{path} is not a simulated processor ({reason}): remove it, and another one is made"
        )

    @property
    def code(self) -> str:
        return "simulated_processor_unusable"


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedChain:
    """The VCEK's private key and the three certificates."""

    key: ec.EllipticCurvePrivateKey
    vcek: x509.Certificate
    ask: x509.Certificate
    ark: x509.Certificate

    @property
    def chip_id(self) -> bytes:
        """The hardware id that the VCEK certifies."""
        extension = self.vcek.extensions.get_extension_for_oid(_HARDWARE_ID).value
        assert isinstance(extension, x509.UnrecognizedExtension)
        return extension.value

    @property
    def root_pem(self) -> bytes:
        """The ARK: what a verifier has to trust, in place of AMD's, to take the reports."""
        return _pem(self.ark)

    @property
    def root_spki_sha256(self) -> str:
        """What such a verifier pins: the hex SHA-256 of the ARK's SubjectPublicKeyInfo."""
        spki = self.ark.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return hashlib.sha256(spki).hexdigest()


def open_chain(path: Path, now: dt.datetime) -> SimulatedChain:
    """Read the chain; make it first if there is none, which takes seconds. Blocks.

    A crash in the middle leaves no chain, never half of one. Raises SimulatedChainError,
    StorageError.
    """
    try:
        data = read_bounded(path, _MAX_BYTES)
    except FileAbsentError:
        chain = make_chain(now)
        write_atomic(path, _serialised(chain), mode=0o600)
        return chain
    return _parsed(path, data)


def make_chain(now: dt.datetime, rsa_bits: int = RSA_BITS) -> SimulatedChain:
    """Another processor, with a hardware id of its own."""
    ark_key = rsa.generate_private_key(65537, rsa_bits)
    ask_key = rsa.generate_private_key(65537, rsa_bits)
    key = ec.generate_private_key(ec.SECP384R1())
    ark_name, ask_name = _name("ARK-Milan"), _name("SEV-Milan")
    begin = (now - _BACKDATED).replace(microsecond=0)
    ark = _authority(ark_name, ark_name, ark_key.public_key(), begin, None).sign(
        ark_key, hashes.SHA384(), rsa_padding=_PSS
    )
    ask = _authority(ask_name, ark_name, ask_key.public_key(), begin, 0).sign(
        ark_key, hashes.SHA384(), rsa_padding=_PSS
    )
    vcek = _certificate(_name("SEV-VCEK"), ask_name, key.public_key(), begin, begin + _VCEK_LIFE)
    for oid, value in _amd_extensions(TCB, secrets.token_bytes(CHIP_ID_BYTES)):
        vcek = vcek.add_extension(
            x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value), critical=False
        )
    signed = vcek.sign(ask_key, hashes.SHA384(), rsa_padding=_PSS)
    return SimulatedChain(key=key, vcek=signed, ask=ask, ark=ark)


def _name(common: str) -> x509.Name:
    """The common name is the one that AMD's has, and which verifiers insist on."""
    warning = (NameOID.ORGANIZATION_NAME, NameOID.ORGANIZATIONAL_UNIT_NAME)
    return x509.Name(
        [
            *(x509.NameAttribute(oid, SIMULATED) for oid in warning),
            x509.NameAttribute(NameOID.COMMON_NAME, common),
        ]
    )


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey,
    begin: dt.datetime,
    end: dt.datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
    )


def _authority(
    subject: x509.Name,
    issuer: x509.Name,
    key: rsa.RSAPublicKey,
    begin: dt.datetime,
    below: int | None,
) -> x509.CertificateBuilder:
    """`below`: how many authorities may follow in a chain; None: any number."""
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    return (
        _certificate(subject, issuer, key, begin, begin + _ROOT_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=below), critical=True)
        .add_extension(usage, critical=True)
    )


def _amd_extensions(tcb: SimulatedTcb, chip_id: bytes) -> list[tuple[str, bytes]]:
    """AMD, "Versioned Chip Endorsement Key Certificate and KDS Interface", table 11."""
    levels = {1: tcb.bootloader, 2: tcb.tee, 3: tcb.snp, 8: tcb.microcode}
    return [
        (f"{_AMD}.1", _STRUCT_VERSION),
        (f"{_AMD}.2", _PRODUCT),
        *((f"{_AMD}.3.{part}", _der_integer(levels.get(part, 0))) for part in range(1, 9)),
        (f"{_AMD}.4", chip_id),
    ]


def _der_integer(value: int) -> bytes:
    body = value.to_bytes(value.bit_length() // 8 + 1)
    return bytes((2, len(body))) + body


def _serialised(chain: SimulatedChain) -> bytes:
    key = chain.key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return key + b"".join(_pem(one) for one in (chain.vcek, chain.ask, chain.ark))


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _parsed(path: Path, data: bytes) -> SimulatedChain:
    """What `_serialised` gives, and nothing whose parts do not belong together."""
    try:
        key = serialization.load_pem_private_key(data, None)
        vcek, ask, ark = x509.load_pem_x509_certificates(data)
        for issued, issuer in ((vcek, ask), (ask, ark), (ark, ark)):
            issued.verify_directly_issued_by(issuer)
        belongs = isinstance(key, ec.EllipticCurvePrivateKey) and key.public_key() == (
            vcek.public_key()
        )
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm) as error:
        raise SimulatedChainError(path, "its keys and certificates cannot be read") from error
    if not belongs or not isinstance(key, ec.EllipticCurvePrivateKey):
        raise SimulatedChainError(path, "its key is not the VCEK's")
    return SimulatedChain(key=key, vcek=vcek, ask=ask, ark=ark)
