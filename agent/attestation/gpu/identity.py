"""Who a device says it is in its certificates: chip, own name, id, firmware digest.

Sources: DMTF SPDM's device information (other name 1.3.6.1.4.1.412.274.1), in the one form that
NVIDIA's devices use; for the id, genuine boards: the serial number of the certificate of the key
that was provisioned into a device is one byte (0x41 of a GPU, 0x50 of a switch) and the eight by
which the reports of the others name it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from cryptography import x509

from agent.attestation.evidence import EvidenceError
from agent.attestation.gpu.claims import DeviceKind
from agent.attestation.gpu.dice import firmware_digest
from agent.attestation.pinned_chain import UNREADABLE, Chain, spki_sha256

_DEVICE_INFO = x509.ObjectIdentifier("1.3.6.1.4.1.412.274.1")
_NAME = re.compile(r"NVIDIA:([A-Z]{2}_?[0-9]{2,3}[A-Z]?):([0-9A-F]{16})")

_ID_BYTES = 8
_KIND_BYTE = {DeviceKind.GPU: 0x41, DeviceKind.NVSWITCH: 0x50}

_FAMILIES = (
    (re.compile(r"GH[0-9]{3}"), DeviceKind.GPU, "HOPPER"),
    (re.compile(r"GB[0-9]{3}[A-Z]?"), DeviceKind.GPU, "BLACKWELL"),
    (re.compile(r"LS_10"), DeviceKind.NVSWITCH, "LS10"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceIdentity:
    """Of a verified chain: `key` is the SHA-256 of the key provisioned into the device. `id`: None
    where its certificate's serial number has another form.
    """

    kind: DeviceKind
    architecture: str
    chip: str
    device: str
    key: str
    fwid: bytes | None
    id: bytes | None = None


def read_identity(chain: Chain) -> DeviceIdentity:
    """Read the leaf, and the device's certificate that issued it. Raises where it has no name."""
    try:
        extensions = chain[0].extensions
    except UNREADABLE as error:
        raise EvidenceError("gpu_identity", "the certificate's extensions are not read") from error
    name = _device_name(extensions)
    match = _NAME.fullmatch(name)
    if match is None:
        raise EvidenceError("gpu_identity", f"the certificate's device name is {name!r}")
    chip = match[1]
    for pattern, kind, architecture in _FAMILIES:
        if pattern.fullmatch(chip):
            return DeviceIdentity(
                kind=kind,
                architecture=architecture,
                chip=chip,
                device=name,
                key=spki_sha256(chain[1]),
                fwid=firmware_digest(extensions),
                id=_id(chain[1].serial_number, kind),
            )
    raise EvidenceError("gpu_chip", f"chip {chip!r} is none of Hopper, Blackwell, LS10")


def _id(serial_number: int, kind: DeviceKind) -> bytes | None:
    first, own = divmod(serial_number, 1 << 8 * _ID_BYTES)
    return own.to_bytes(_ID_BYTES) if first == _KIND_BYTE[kind] else None


def _device_name(extensions: x509.Extensions) -> str:
    try:
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound as error:
        raise EvidenceError("gpu_identity", "the certificate names no device") from error
    others = [
        n.value for n in names if isinstance(n, x509.OtherName) and n.type_id == _DEVICE_INFO
    ]
    if len(others) != 1:
        raise EvidenceError("gpu_identity", "the certificate must name one device")
    # UTF8String, its length in one byte.
    (other,) = others
    if not 2 <= len(other) < 130 or other[:2] != bytes([0x0C, len(other) - 2]):
        raise EvidenceError("gpu_identity", "the certificate's device name is no short text")
    return other[2:].decode("ascii", "replace")
