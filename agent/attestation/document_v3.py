"""Version 3 of the document: evidence over a nonce, the guest's keys and its devices. Pure.

    REPORT_DATA = SHA-256(label ‖ nonce ‖ SHA-256(crypto_material) ‖ SHA-256(device_evidence)) ‖ 0…

The hashes are over the very bytes that were sent, never over something written anew, and the
nonce is the one that was asked with, never the one that the document repeats.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from agent.attestation.collateral import Entry, read_collateral
from agent.attestation.document import (
    KEY_BYTES,
    MAX_DOCUMENT_BYTES,
    MAX_EVIDENCE_BYTES,
    NONCE_BYTES,
    PREDICATE,
    REPORT_DATA_BYTES,
    BoundKeys,
    CpuKind,
    DeviceItem,
    Document,
)
from agent.attestation.evidence import EvidenceError
from agent.attestation.strict_json import (
    DocumentPart,
    canonical_base64,
    lower_hex,
    malformed,
    read_json,
    shown,
)

FORMAT = f"{PREDICATE}attestation/v3"
REPORT_DATA_LABEL = "https://tinfoil.sh/report-data/v1"
CRYPTO_FORMAT = "https://tinfoil.sh/crypto-material/v1"
DEVICE_FORMAT = "https://tinfoil.sh/device-evidence/v1"
SPKI_FORMAT = "https://tinfoil.sh/key/spki-fp-sha256/v1"
HPKE_FORMAT = "https://tinfoil.sh/key/x25519-hpke/v1"
CPU_FORMATS = {
    "https://tinfoil.sh/format/sev-snp-report/v1": CpuKind.SNP,
    "https://tinfoil.sh/format/tdx-quote/v1": CpuKind.TDX,
}
_KEY_FORMATS = {"tls": SPKI_FORMAT, "hpke": HPKE_FORMAT}


class _Challenge(DocumentPart, frozen=True, kw_only=True):
    nonce: str
    report_data: str
    report_data_algorithm: str


class _Endorsed(DocumentPart, frozen=True, kw_only=True):
    crypto_material_hash: str
    device_evidence_hash: str


class _CpuEvidence(DocumentPart, frozen=True, kw_only=True):
    format: str
    report_base64: str
    endorsed: _Endorsed


class _Document(DocumentPart, frozen=True, kw_only=True):
    format: str
    challenge: _Challenge
    cpu_evidence: _CpuEvidence
    crypto_material: str
    device_evidence: str
    collateral: tuple[Entry, ...] = ()


class _Key(DocumentPart, frozen=True, kw_only=True):
    id: str
    format: str
    data: str


class _Keys(DocumentPart, frozen=True, kw_only=True):
    format: str
    items: tuple[_Key, ...]


class _Device(DocumentPart, frozen=True, kw_only=True):
    id: str
    kind: str
    vendor: str
    format: str
    evidence: dict[str, Any]


class _Devices(DocumentPart, frozen=True, kw_only=True):
    format: str
    items: tuple[_Device, ...]


def report_data_for(nonce: bytes, crypto_material: bytes, device_evidence: bytes) -> bytes:
    """The 64 bytes that a report over these must carry."""
    digest = hashlib.sha256(REPORT_DATA_LABEL.encode() + nonce)
    digest.update(hashlib.sha256(crypto_material).digest())
    digest.update(hashlib.sha256(device_evidence).digest())
    return digest.digest().ljust(REPORT_DATA_BYTES, b"\0")


def read_v3(data: bytes, nonce: bytes) -> Document:
    """`nonce`: the one that was sent.

    Raises EvidenceError `document_malformed`, `document_too_large`, `document_format`,
    `nonce_mismatch`, or `document_inconsistent` where it contradicts itself.
    """
    document = read_json(data, _Document, "the document")
    _require_format(document.format, FORMAT, "the document")
    cpu = document.cpu_evidence
    kind = CPU_FORMATS.get(cpu.format)
    if kind is None:
        raise EvidenceError("document_format", f"cpu_evidence: format {shown(cpu.format)}")
    keys_raw = _section(document.crypto_material, "crypto_material")
    devices_raw = _section(document.device_evidence, "device_evidence")
    return Document(
        version=3,
        cpu=kind,
        report=canonical_base64(
            cpu.report_base64, "cpu_evidence.report_base64", MAX_EVIDENCE_BYTES
        ),
        report_data=_report_data(document, nonce, keys_raw, devices_raw),
        keys=_read_keys(keys_raw),
        devices=_read_devices(devices_raw),
        collateral=read_collateral(document.collateral),
    )


def _report_data(document: _Document, nonce: bytes, keys_raw: bytes, devices_raw: bytes) -> bytes:
    """Computed from what was sent; what the document says of it must agree."""
    challenge, endorsed = document.challenge, document.cpu_evidence.endorsed
    _require_format(challenge.report_data_algorithm, REPORT_DATA_LABEL, "report_data_algorithm")
    if lower_hex(challenge.nonce, "challenge.nonce", NONCE_BYTES) != nonce:
        raise EvidenceError("nonce_mismatch", "challenge.nonce: it is not the nonce that was sent")
    computed = report_data_for(nonce, keys_raw, devices_raw)
    claimed = (
        ("cpu_evidence.endorsed.crypto_material_hash", endorsed.crypto_material_hash, keys_raw),
        ("cpu_evidence.endorsed.device_evidence_hash", endorsed.device_evidence_hash, devices_raw),
    )
    for what, text, raw in claimed:
        if lower_hex(text, what, 32) != hashlib.sha256(raw).digest():
            raise EvidenceError("document_inconsistent", f"{what}: it is of something else")
    what = "challenge.report_data"
    if lower_hex(challenge.report_data, what, REPORT_DATA_BYTES) != computed:
        raise EvidenceError("document_inconsistent", f"{what}: it is of something else")
    return computed


def _read_keys(raw: bytes) -> BoundKeys:
    section = read_json(raw, _Keys, "crypto_material")
    _require_format(section.format, CRYPTO_FORMAT, "crypto_material")
    _require_ids([item.id for item in section.items], "crypto_material")
    found: dict[str, bytes] = {}
    for item in section.items:
        what, wanted = f"crypto_material {shown(item.id)}", _KEY_FORMATS.get(item.id)
        if wanted is not None:
            _require_format(item.format, wanted, what)
        found[item.id] = lower_hex(item.data, what, KEY_BYTES if wanted else None)
    if "tls" not in found:
        raise malformed("crypto_material", "it binds no TLS key")
    return BoundKeys(tls_spki_sha256=found["tls"], hpke=found.get("hpke"))


def _read_devices(raw: bytes) -> tuple[DeviceItem, ...]:
    section = read_json(raw, _Devices, "device_evidence")
    _require_format(section.format, DEVICE_FORMAT, "device_evidence")
    _require_ids([item.id for item in section.items], "device_evidence")
    return tuple(
        DeviceItem(
            id=item.id,
            kind=item.kind,
            vendor=item.vendor,
            format=item.format,
            evidence=item.evidence,
        )
        for item in section.items
    )


def _section(text: str, what: str) -> bytes:
    return canonical_base64(text, what, MAX_DOCUMENT_BYTES)


def _require_format(found: str, wanted: str, what: str) -> None:
    if found != wanted:
        raise EvidenceError("document_format", f"{what}: format {shown(found)}, not {wanted}")


def _require_ids(ids: Sequence[str], what: str) -> None:
    if not all(ids) or len(set(ids)) != len(ids):
        raise malformed(what, "its ids are not different from each other, or empty")
