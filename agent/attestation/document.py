"""A guest's attestation document, of either version, as the rest of the agent needs it. Pure.

Nothing in it is believed: it says which evidence there is, which keys that evidence is to bind,
and what report data it must then carry.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from agent.attestation.collateral import Collateral
from agent.attestation.evidence import EvidenceError

NONCE_BYTES = 32
KEY_BYTES = 32  # of a fingerprint, and of an X25519 key
REPORT_DATA_BYTES = 64
MAX_DOCUMENT_BYTES = 1 << 20
MAX_EVIDENCE_BYTES = 32 * 1024
PATH = "/.well-known/tinfoil-attestation"
PREDICATE = "https://tinfoil.sh/predicate/"


class CpuKind(StrEnum):
    """Whose evidence it is."""

    SNP = "sev-snp"
    TDX = "tdx"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceItem:
    """One device's evidence: what it is, and a payload that its format describes."""

    id: str
    kind: str
    vendor: str
    format: str
    evidence: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundKeys:
    """The keys that evidence binds: SHA-256 of the TLS key's SPKI, and the HPKE key."""

    tls_spki_sha256: bytes
    hpke: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """`report_data` and `keys` are None in version 2: there the report itself says the keys."""

    version: int
    cpu: CpuKind
    report: bytes
    report_data: bytes | None = None
    keys: BoundKeys | None = None
    devices: tuple[DeviceItem, ...] = ()
    collateral: Collateral = field(default_factory=Collateral)


def keys_in_report_data(report_data: bytes) -> BoundKeys:
    """Version 2: the TLS fingerprint, then the HPKE key. Raises `report_data_length`."""
    if len(report_data) != REPORT_DATA_BYTES:
        raise EvidenceError(
            "report_data_length", f"report data of {len(report_data)} bytes binds no keys"
        )
    return BoundKeys(tls_spki_sha256=report_data[:KEY_BYTES], hpke=report_data[KEY_BYTES:])
