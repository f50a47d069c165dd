"""A SEV-SNP attestation report, every field of it, as frozen values. Pure.

Source: SEV Secure Nested Paging Firmware ABI (56860), ATTESTATION_REPORT, versions 2, 3 and 5;
version 4 was never published, and has the layout of version 3. What is reserved is so by version.
What is parsed is not believed: `snp.verify_report` does that. TCB versions stay bytes here,
because a report of version 2 does not say which product it is of, and so not their layout.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from agent.attestation.evidence import EvidenceError
from agent.attestation.snp_tcb import Product, Signer, product_of

REPORT_BYTES = 1184
SIGNED_BYTES = 0x2A0
# The bits of the platform info that a version has. Bit 6 came with ABI 1.58, whose reports are of
# version 5; bit 5 came to firmware that still writes version 2.
_PLATFORM_BITS = {2: 0x3F, 3: 0xBF, 4: 0xBF, 5: 0xFF}
_ECDSA_P384_SHA384 = 1
_POLICY_RESERVED = ~((1 << 26) - 1) & (1 << 64) - 1
_SIGNERS = {0: Signer.VCEK, 1: Signer.VLEK}
_HEAD = struct.Struct("<IIQ16s16sII8sQII64s48s32s48s48s32s32s8s")


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestPolicy:
    """What the guest's owner allowed, fixed at launch. `raw`: the 64 bits."""

    raw: int
    abi_minor: int
    abi_major: int
    smt: bool
    migration_agent: bool
    debug: bool
    single_socket: bool
    cxl: bool
    memory_aes_256_xts: bool
    rapl_disabled: bool
    ciphertext_hiding: bool
    page_swap_disabled: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformInfo:
    """What the host's firmware says of the platform."""

    raw: int
    smt: bool
    tsme: bool
    ecc: bool
    rapl_disabled: bool
    ciphertext_hiding: bool
    alias_check_complete: bool
    iommu_write_safe: bool
    trusted_io: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FirmwareVersion:
    """A firmware version."""

    major: int
    minor: int
    build: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.build}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpReport:
    """All of it. `product` and `line` (family, model, stepping) are None in version 2. Mitigation
    vectors: version 5 only.
    """

    version: int
    guest_svn: int
    policy: GuestPolicy
    family_id: bytes
    image_id: bytes
    vmpl: int
    current_tcb: bytes
    platform: PlatformInfo
    author_key_enabled: bool
    chip_key_masked: bool
    signer: Signer
    report_data: bytes
    measurement: bytes
    host_data: bytes
    id_key_digest: bytes
    author_key_digest: bytes
    report_id: bytes
    report_id_ma: bytes
    reported_tcb: bytes
    product: Product | None
    line: tuple[int, int, int] | None
    chip_id: bytes
    committed_tcb: bytes
    current_firmware: FirmwareVersion
    committed_firmware: FirmwareVersion
    launch_tcb: bytes
    launch_mitigations: int | None
    current_mitigations: int | None
    signed: bytes = field(repr=False)
    signature_r: int
    signature_s: int


def parse_report(raw: bytes) -> SnpReport:
    """Read the 1184 bytes; reserved ones must be zero. Raises EvidenceError."""
    if len(raw) != REPORT_BYTES:
        raise EvidenceError("report_length", f"it has {len(raw)} bytes, not {REPORT_BYTES}")
    head = _HEAD.unpack_from(raw)
    version, algorithm = head[0], head[6]
    if version not in _PLATFORM_BITS:
        raise EvidenceError("report_version", f"version {version} is none of 2, 3, 4, 5")
    if algorithm != _ECDSA_P384_SHA384:
        raise EvidenceError(
            "report_algorithm", f"signature algorithm {algorithm} is not ECDSA P-384 with SHA-384"
        )
    _require_reserved(raw, version)
    masked, author_key, signer = _signer(head[9])
    named = version >= 3
    return SnpReport(
        version=version,
        guest_svn=head[1],
        policy=_policy(head[2]),
        family_id=head[3],
        image_id=head[4],
        vmpl=head[5],
        current_tcb=head[7],
        platform=_platform(head[8], version),
        author_key_enabled=author_key,
        chip_key_masked=masked,
        signer=signer,
        report_data=head[11],
        measurement=head[12],
        host_data=head[13],
        id_key_digest=head[14],
        author_key_digest=head[15],
        report_id=head[16],
        report_id_ma=head[17],
        reported_tcb=head[18],
        product=product_of(raw[0x188], raw[0x189]) if named else None,
        line=(raw[0x188], raw[0x189], raw[0x18A]) if named else None,
        chip_id=raw[0x1A0:0x1E0],
        committed_tcb=raw[0x1E0:0x1E8],
        current_firmware=_firmware(raw, 0x1E8),
        committed_firmware=_firmware(raw, 0x1EC),
        launch_tcb=raw[0x1F0:0x1F8],
        launch_mitigations=_vector(raw, 0x1F8) if version >= 5 else None,
        current_mitigations=_vector(raw, 0x200) if version >= 5 else None,
        signed=raw[:SIGNED_BYTES],
        signature_r=int.from_bytes(raw[0x2A0:0x2E8], "little"),
        signature_s=int.from_bytes(raw[0x2E8:0x330], "little"),
    )


def _require_reserved(raw: bytes, version: int) -> None:
    ranges = (
        (0x4C, 0x50),
        (0x18B if version >= 3 else 0x188, 0x1A0),
        (0x1EB, 0x1EC),
        (0x1EF, 0x1F0),
        (0x208 if version >= 5 else 0x1F8, SIGNED_BYTES),
        (0x330, REPORT_BYTES),
    )
    for begin, end in ranges:
        if any(raw[begin:end]):
            raise EvidenceError(
                "report_reserved", f"reserved bytes {begin:#x} to {end - 1:#x} are not zero"
            )


def _signer(bits: int) -> tuple[bool, bool, Signer]:
    if bits >> 5:
        raise EvidenceError("report_reserved", "reserved bits of the signer info are not zero")
    signer = _SIGNERS.get(bits >> 2)
    if signer is None:
        raise EvidenceError("report_signer", f"signing key {bits >> 2} is neither VCEK nor VLEK")
    return bool(bits & 2), bool(bits & 1), signer


def _policy(bits: int) -> GuestPolicy:
    if bits & _POLICY_RESERVED or not bits >> 17 & 1:
        raise EvidenceError(
            "report_reserved", f"guest policy {bits:#x}: its reserved bits are not as they must be"
        )
    return GuestPolicy(
        raw=bits,
        abi_minor=bits & 0xFF,
        abi_major=bits >> 8 & 0xFF,
        smt=bool(bits >> 16 & 1),
        migration_agent=bool(bits >> 18 & 1),
        debug=bool(bits >> 19 & 1),
        single_socket=bool(bits >> 20 & 1),
        cxl=bool(bits >> 21 & 1),
        memory_aes_256_xts=bool(bits >> 22 & 1),
        rapl_disabled=bool(bits >> 23 & 1),
        ciphertext_hiding=bool(bits >> 24 & 1),
        page_swap_disabled=bool(bits >> 25 & 1),
    )


def _platform(bits: int, version: int) -> PlatformInfo:
    if unknown := bits & ~_PLATFORM_BITS[version]:
        raise EvidenceError(
            "report_reserved",
            f"platform info {bits:#x}: the bits {unknown:#x} are reserved in version {version}",
        )
    return PlatformInfo(
        raw=bits,
        smt=bool(bits & 1),
        tsme=bool(bits >> 1 & 1),
        ecc=bool(bits >> 2 & 1),
        rapl_disabled=bool(bits >> 3 & 1),
        ciphertext_hiding=bool(bits >> 4 & 1),
        alias_check_complete=bool(bits >> 5 & 1),
        iommu_write_safe=bool(bits >> 6 & 1),
        trusted_io=bool(bits >> 7 & 1),
    )


def _firmware(raw: bytes, at: int) -> FirmwareVersion:
    return FirmwareVersion(build=raw[at], minor=raw[at + 1], major=raw[at + 2])


def _vector(raw: bytes, at: int) -> int:
    return int.from_bytes(raw[at : at + 8], "little")
