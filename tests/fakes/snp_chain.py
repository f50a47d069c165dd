"""A SEV-SNP processor of any product line, with its certificates, well made or badly.

Only the vendor is feigned: keys, certificates, revocation lists and reports are real ones, under
a root that a test has to name.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from dataclasses import dataclass, replace
from functools import cache

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from agent.attestation.collateral import Endorsements
from agent.attestation.roots import Trust
from agent.attestation.snp_tcb import Product, Signer

NOW = dt.datetime(2026, 6, 1, 12, tzinfo=dt.UTC)
YEAR = dt.timedelta(days=365)
PSS = padding.PSS(padding.MGF1(hashes.SHA384()), 48)
AMD = "1.3.6.1.4.1.3704.1"
PARTS = {"bootloader": 1, "tee": 2, "snp": 3, "microcode": 8, "fmc": 9}
TCB = {"bootloader": 4, "tee": 1, "snp": 24, "microcode": 219, "fmc": 2}
FAMILY_MODEL = {Product.MILAN: (0x19, 1), Product.GENOA: (0x19, 0x11), Product.TURIN: (0x1A, 2)}
# Where the fields of a report stand, and how long they are.
FIELDS = {
    "version": (0x00, 4),
    "guest_svn": (0x04, 4),
    "policy": (0x08, 8),
    "vmpl": (0x30, 4),
    "algorithm": (0x34, 4),
    "current_tcb": (0x38, 8),
    "platform": (0x40, 8),
    "signer": (0x48, 4),
    "reserved_4c": (0x4C, 4),
    "report_data": (0x50, 64),
    "measurement": (0x90, 48),
    "host_data": (0xC0, 32),
    "id_key_digest": (0xE0, 48),
    "author_key_digest": (0x110, 48),
    "report_id": (0x140, 32),
    "reported_tcb": (0x180, 8),
    "family": (0x188, 1),
    "model": (0x189, 1),
    "stepping": (0x18A, 1),
    "reserved_18b": (0x18B, 1),
    "chip_id": (0x1A0, 64),
    "committed_tcb": (0x1E0, 8),
    "current_firmware": (0x1E8, 3),
    "reserved_1eb": (0x1EB, 1),
    "committed_firmware": (0x1EC, 3),
    "reserved_1ef": (0x1EF, 1),
    "launch_tcb": (0x1F0, 8),
    "launch_mitigations": (0x1F8, 8),
    "current_mitigations": (0x200, 8),
    "reserved_208": (0x208, 8),
}
MEASUREMENT = bytes(range(48))


@cache
def rsa_key(name: str, bits: int = 4096) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, bits)


@cache
def chip_key(curve: type[ec.EllipticCurve] = ec.SECP384R1) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(curve())


def tcb_bytes(product: Product, **changes: int) -> bytes:
    part = TCB | changes
    if product is Product.TURIN:
        head = bytes((part["fmc"], part["bootloader"], part["tee"], part["snp"]))
        return head + bytes((0, 0, 0, part["microcode"]))
    return bytes((part["bootloader"], part["tee"], 0, 0, 0, 0, part["snp"], part["microcode"]))


def der_integer(value: int) -> bytes:
    body = value.to_bytes(value.bit_length() // 8 + 1)
    return bytes((2, len(body))) + body


@dataclass(frozen=True)
class Life:
    """When a certificate is valid."""

    begin: dt.datetime = NOW - YEAR
    end: dt.datetime = NOW + YEAR


EXPIRED = Life(NOW - 2 * YEAR, NOW - dt.timedelta(seconds=1))
FUTURE = Life(NOW + dt.timedelta(seconds=1), NOW + YEAR)


@dataclass(frozen=True)
class FakeAmd:
    """One chip and its chain. `extensions` of the leaf, by OID below AMD's; None: left out."""

    product: Product = Product.MILAN
    signer: Signer = Signer.VCEK
    extensions: tuple[tuple[str, bytes | None], ...] = ()
    ark_name: str | None = None
    ask_name: str | None = None
    leaf_name: str | None = None
    ark_life: Life = Life()
    ask_life: Life = Life()
    leaf_life: Life = Life()
    ask_serial: int = 0x10001
    leaf_serial: int = 0x77
    root: str = "ark"
    ark_signed_by: str | None = None
    ask_signed_by: str | None = None
    leaf_signed_by: str = "ask"
    ask_is_ca: bool = True
    ask_path_length: int | None = 0
    ark_path_length: int | None = None
    ark_usage: tuple[bool, bool] | None = (True, True)  # may sign certificates, and lists
    ask_usage: tuple[bool, bool] | None = (True, True)
    leaf_usage: bool | None = None  # whether it may sign; None: it does not say
    leaf_is_ca: bool | None = None
    ask_bits: int = 4096
    leaf_curve: type[ec.EllipticCurve] = ec.SECP384R1
    salt: int = 48
    digest: type[hashes.HashAlgorithm] = hashes.SHA384

    def but(self, **changes: object) -> FakeAmd:
        return replace(self, **changes)  # type: ignore[arg-type]

    @property
    def chip_id(self) -> bytes:
        size = 8 if self.product is Product.TURIN else 64
        return hashlib.shake_256(b"chip").digest(size)

    @property
    def trust(self) -> Trust:
        return Trust(simulated={self.root_spki_sha256: self.product})

    @property
    def root_spki_sha256(self) -> str:
        key = rsa_key(self.root).public_key()
        return hashlib.sha256(
            key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        ).hexdigest()

    @property
    def endorsements(self) -> Endorsements:
        return _endorsements(self)

    def ark_subject(self) -> str:
        return self.ark_name or f"ARK-{self.product}"

    def ask_subject(self) -> str:
        kind = "VLEK-" if self.signer is Signer.VLEK else ""
        return self.ask_name or f"SEV-{kind}{self.product}"

    def crl(
        self,
        *revoked: int,
        issuer: str | None = None,
        signed_by: str | None = None,
        begin: dt.datetime = NOW - dt.timedelta(days=1),
        end: dt.datetime = NOW + dt.timedelta(days=1),
        critical: bool = False,
        number: int = 7,
    ) -> bytes:
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(_name(issuer or self.ark_subject()))
            .last_update(begin)
            .next_update(end)
            .add_extension(x509.CRLNumber(number), critical=critical)
        )
        for serial in revoked:
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(begin)
            reason = x509.CRLReason(x509.ReasonFlags.key_compromise)
            builder = builder.add_revoked_certificate(
                entry.add_extension(reason, critical=False).build()
            )
        signed = builder.sign(rsa_key(signed_by or self.root), hashes.SHA384(), rsa_padding=PSS)
        return signed.public_bytes(Encoding.DER)

    def report(self, **fields: int | bytes) -> bytes:
        """A signed report; every field may be another one. Integers are little-endian."""
        signed = self.body(**fields)
        key = chip_key(self.leaf_curve)
        r, s = decode_dss_signature(key.sign(signed, ec.ECDSA(hashes.SHA384())))
        halves = r.to_bytes(72, "little") + s.to_bytes(72, "little")
        return (signed + halves).ljust(1184, b"\0")

    def body(self, **fields: int | bytes) -> bytes:
        """The 0x2A0 bytes that are signed."""
        tcb = tcb_bytes(self.product)
        family, model = FAMILY_MODEL[self.product]
        values: dict[str, int | bytes] = {
            "version": 3,
            "policy": 0x30000,
            "algorithm": 1,
            "platform": 0x25,
            "signer": 0 if self.signer is Signer.VCEK else 1 << 2,
            "measurement": MEASUREMENT,
            "family": family,
            "model": model,
            "chip_id": self.chip_id,
            "current_firmware": bytes((21, 55, 1)),
            "committed_firmware": bytes((21, 55, 1)),
            **dict.fromkeys(("current_tcb", "reported_tcb", "committed_tcb", "launch_tcb"), tcb),
        }
        if fields.get("version") == 2:
            values |= {"family": 0, "model": 0}
        body = bytearray(0x2A0)
        for name, value in (values | fields).items():
            at, size = FIELDS[name]
            raw = value.to_bytes(size, "little") if isinstance(value, int) else value
            body[at : at + size] = raw.ljust(size, b"\0")
        return bytes(body)


@cache
def _endorsements(amd: FakeAmd) -> Endorsements:
    root, ask = rsa_key(amd.root), rsa_key("ask", amd.ask_bits)
    ark_name, ask_name = amd.ark_subject(), amd.ask_subject()
    by = rsa_key(amd.ark_signed_by or amd.root)
    ark_der = _authority(
        ark_name,
        ark_name,
        root,
        by,
        amd.ark_life,
        0x10000,
        amd.ark_path_length,
        usage=amd.ark_usage,
    )
    issuer = rsa_key(amd.ask_signed_by or amd.root)
    ask_der = _authority(
        ask_name,
        ark_name,
        ask,
        issuer,
        amd.ask_life,
        amd.ask_serial,
        amd.ask_path_length,
        ca=amd.ask_is_ca,
        usage=amd.ask_usage,
    )
    leaf = _builder(
        amd.leaf_name or f"SEV-{amd.signer.name}",
        ask_name,
        chip_key(amd.leaf_curve).public_key(),
        amd.leaf_life,
        amd.leaf_serial,
    )
    for oid, value in (_leaf_extensions(amd) | dict(amd.extensions)).items():
        if value is not None:
            unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier(f"{AMD}.{oid}"), value)
            leaf = leaf.add_extension(unknown, critical=False)
    if amd.leaf_usage is not None:
        leaf = leaf.add_extension(_usage(amd.leaf_usage, False, False), critical=True)
    if amd.leaf_is_ca is not None:
        leaf = leaf.add_extension(x509.BasicConstraints(amd.leaf_is_ca, None), critical=True)
    by = (
        rsa_key("ask", amd.ask_bits)
        if amd.leaf_signed_by == "ask"
        else rsa_key(amd.leaf_signed_by)
    )
    scheme = padding.PSS(padding.MGF1(amd.digest()), amd.salt)
    leaf_der = leaf.sign(by, amd.digest(), rsa_padding=scheme).public_bytes(Encoding.DER)
    return Endorsements(leaf=leaf_der, ask=ask_der, ark=ark_der)


def _leaf_extensions(amd: FakeAmd) -> dict[str, bytes | None]:
    parts = {name: TCB[name] for name in PARTS if name != "fmc" or amd.product is Product.TURIN}
    name = f"{amd.product}-B0".encode()
    found: dict[str, bytes | None] = {
        "1": der_integer(0),
        "2": bytes((0x16, len(name))) + name,
        **{f"3.{PARTS[part]}": der_integer(value) for part, value in parts.items()},
    }
    if amd.signer is Signer.VCEK:
        found["4"] = amd.chip_id
    else:
        found["5"] = b"\x16\x05Cloud"
    return found


def _name(common: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Made for a test"),
            x509.NameAttribute(NameOID.COMMON_NAME, common),
        ]
    )


def _builder(
    subject: str,
    issuer: str,
    key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey,
    life: Life,
    serial: int,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name(issuer))
        .public_key(key)
        .serial_number(serial)
        .not_valid_before(life.begin)
        .not_valid_after(life.end)
    )


def _authority(
    subject: str,
    issuer: str,
    key: rsa.RSAPrivateKey,
    by: rsa.RSAPrivateKey,
    life: Life,
    serial: int,
    path_length: int | None,
    *,
    ca: bool = True,
    usage: tuple[bool, bool] | None = (True, True),
) -> bytes:
    builder = _builder(subject, issuer, key.public_key(), life, serial).add_extension(
        x509.BasicConstraints(ca, path_length if ca else None), critical=True
    )
    if usage is not None:
        builder = builder.add_extension(_usage(False, *usage), critical=True)
    return builder.sign(by, hashes.SHA384(), rsa_padding=PSS).public_bytes(Encoding.DER)


def _usage(signs: bool, certificates: bool, lists: bool) -> x509.KeyUsage:
    return x509.KeyUsage(signs, False, False, False, False, certificates, lists, False, False)
