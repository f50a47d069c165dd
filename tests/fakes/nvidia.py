"""A self-made NVIDIA: devices with their certificates, and signed measurement reports of them."""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from agent.attestation.gpu.verify import GpuEvidence
from agent.attestation.pinned_chain import spki_sha256
from tests.fakes.certificates import Issued, issue
from tests.fakes.intel import sign_raw

NOW = datetime(2026, 3, 1, tzinfo=UTC)
NONCE = bytes(range(32))
FWID = b"\x95" * 48
GPU_FIELDS: Mapping[int, bytes] = {
    6: bytes.fromhex("00a5009601000000"),
    3: b"590.12\0",
    20: FWID,
    15: b"885\0\0",
    17: b"g520\0",
    18: b"0200\0",
}
SWITCH_FIELDS: Mapping[int, bytes] = {6: b"96.10.55.00.01"}
MEASUREMENTS: Sequence[tuple[int, bytes]] = tuple((n, bytes([n]) * 48) for n in range(1, 5))


class FakeNvidia:
    """One hierarchy. `root`: the pin under which its devices verify."""

    def __init__(self) -> None:
        self.anchor = self._issue("NVIDIA Device Identity CA")
        self._provisioner = self._issue("NVIDIA Provisioner", self.anchor)
        self.root = spki_sha256(self.anchor.certificate)

    def device(
        self,
        name: str,
        *,
        fwid: bytes | None = FWID,
        brom: Issued | None = None,
        names: Sequence[bytes] | None = None,
        dice: Sequence[x509.UnrecognizedExtension] | None = None,
        serial_number: int | None = None,
    ) -> FakeDevice:
        """`name` as in `NVIDIA:GH100:48B02DF44660DA06`; `brom`: a provisioned key given before.

        `dice`: in the place of Hopper's extension with `fwid`. `serial_number`: of the provisioned
        key's certificate.
        """
        brom = brom or self._issue(
            "a device's key", self._provisioner, serial_number=serial_number
        )
        extra: list[tuple[x509.ExtensionType, bool]] = [
            (_device_names([_utf8(name)] if names is None else names), False)
        ]
        if dice is not None:
            extra += [(one, False) for one in dice]
        elif fwid is not None:
            extra.append((_dice(brom, fwid), False))
        leaf = self._issue("firmware", brom, ca=False, extra=extra)
        return FakeDevice(name, brom, (leaf, brom, self._provisioner, self.anchor))

    @staticmethod
    def _issue(
        name: str,
        issuer: Issued | None = None,
        *,
        ca: bool = True,
        extra: Sequence[tuple[x509.ExtensionType, bool]] = (),
        serial_number: int | None = None,
    ) -> Issued:
        return issue(
            name,
            issuer,
            ca=ca,
            curve=ec.SECP384R1(),
            digest=hashes.SHA384(),
            extra=extra,
            serial_number=serial_number,
        )


class FakeDevice:
    """One device of a hierarchy."""

    def __init__(self, name: str, brom: Issued, chain: tuple[Issued, ...]) -> None:
        self.name = name
        self.brom = brom
        self.chain = chain

    @property
    def pem(self) -> bytes:
        return "".join(one.pem for one in self.chain).encode()

    def evidence(
        self,
        nonce: bytes = NONCE,
        *,
        arch: str = "HOPPER",
        report: bytes | None = None,
        echoed: str | None = None,
        fields: Mapping[int, bytes] = GPU_FIELDS,
    ) -> GpuEvidence:
        report = self.report(nonce, fields=fields) if report is None else report
        return GpuEvidence(
            arch=arch,
            certificate=base64.b64encode(self.pem).decode(),
            evidence=base64.b64encode(report).decode(),
            nonce=nonce.hex() if echoed is None else echoed,
        )

    def report(
        self,
        nonce: bytes = NONCE,
        *,
        record: bytes | None = None,
        count: int | None = None,
        fields: Mapping[int, bytes] = GPU_FIELDS,
        opaque: bytes | None = None,
    ) -> bytes:
        """Signed to the letter, whatever is in it."""
        record = measurement_record(MEASUREMENTS) if record is None else record
        opaque = opaque_data(fields) if opaque is None else opaque
        signed = (
            bytes.fromhex("11e001ff")
            + nonce
            + b"\0"
            + bytes.fromhex("11600000")
            + bytes([len(MEASUREMENTS) if count is None else count])
            + len(record).to_bytes(3, "little")
            + record
            + b"\x77" * 32
            + struct.pack("<H", len(opaque))
            + opaque
        )
        return signed + sign_raw(self.chain[0].key, signed, hashes.SHA384())


def measurement_record(measurements: Sequence[tuple[int, bytes]]) -> bytes:
    """DMTF digests."""
    return b"".join(
        struct.pack("<BBHBH", index, 1, 3 + len(value), 1, len(value)) + value
        for index, value in measurements
    )


def opaque_data(fields: Mapping[int, bytes]) -> bytes:
    """NVIDIA's fields, in the order given."""
    return b"".join(struct.pack("<HH", n, len(value)) + value for n, value in fields.items())


def _device_names(names: Sequence[bytes]) -> x509.SubjectAlternativeName:
    oid = x509.ObjectIdentifier("1.3.6.1.4.1.412.274.1")
    return x509.SubjectAlternativeName([x509.OtherName(oid, name) for name in names])


def _utf8(text: str) -> bytes:
    return bytes([0x0C, len(text)]) + text.encode()


def _dice(brom: Issued, fwid: bytes) -> x509.UnrecognizedExtension:
    key = brom.certificate.public_key().public_bytes(
        Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    )
    digest = bytes.fromhex("303d06096086480165030402020430") + fwid
    value = bytes.fromhex("3081ba020101") + key + digest
    return x509.UnrecognizedExtension(x509.ObjectIdentifier("2.23.133.5.4.1"), value)


def tcb_info(
    *fwids: bytes,
    oid: str = "2.23.133.5.4.1.1",
    head: Sequence[bytes] = (b"\x80\x06NVIDIA", b"\x81\x05GB100", b"\x83\x01\x02"),
    tail: Sequence[bytes] = (b"\x87\x05\x00\x80\x00\x00\x01",),
    digest: bytes = bytes.fromhex("0609608648016503040202"),
) -> x509.UnrecognizedExtension:
    """As Blackwell's devices have it: TCG's DiceTcbInfo, whose member [6] lists the digests."""
    listed = b"".join(_der(0x30, digest + _der(0x04, fwid)) for fwid in fwids)
    value = _der(0x30, b"".join(head) + _der(0xA6, listed) + b"".join(tail))
    return x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value)


def _der(tag: int, content: bytes) -> bytes:
    size = len(content)
    long = [0x81, size] if size < 0x100 else [0x82, *size.to_bytes(2)]
    return bytes([tag, *([size] if size < 0x80 else long)]) + content
