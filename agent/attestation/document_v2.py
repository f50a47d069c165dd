"""Version 2 of the document: a report alone, packed, that answers to no nonce. Pure."""

from __future__ import annotations

import zlib

from agent.attestation.document import (
    MAX_DOCUMENT_BYTES,
    MAX_EVIDENCE_BYTES,
    PREDICATE,
    CpuKind,
    Document,
)
from agent.attestation.evidence import EvidenceError
from agent.attestation.strict_json import (
    DocumentPart,
    canonical_base64,
    malformed,
    read_json,
    shown,
)

DUMMY = f"{PREDICATE}dummy/v2"
FORMATS = {
    f"{PREDICATE}sev-snp-guest/v2": CpuKind.SNP,
    f"{PREDICATE}tdx-guest/v2": CpuKind.TDX,
}
_GZIP = 16 + zlib.MAX_WBITS


class _Document(DocumentPart, frozen=True, kw_only=True):
    format: str
    body: str


def read_v2(data: bytes) -> Document:
    """Raises EvidenceError `document_malformed`, `document_too_large` or `document_format`."""
    document = read_json(data, _Document, "the document")
    kind = FORMATS.get(document.format)
    if kind is None:
        raise EvidenceError("document_format", f"format {shown(document.format)} is not known")
    packed = canonical_base64(document.body, "body", MAX_DOCUMENT_BYTES)
    return Document(version=2, cpu=kind, report=unpack(packed))


def unpack(packed: bytes) -> bytes:
    """One gzip member, whole and with nothing after it; never more than the bound is unpacked.

    Raises EvidenceError `document_malformed` or `document_too_large`.
    """
    unpacker = zlib.decompressobj(_GZIP)
    try:
        data = unpacker.decompress(packed, MAX_EVIDENCE_BYTES + 1)
    except zlib.error as error:
        raise malformed("body", "it is not gzip") from error
    if len(data) > MAX_EVIDENCE_BYTES:
        raise EvidenceError(
            "document_too_large", f"body unpacks to more than {MAX_EVIDENCE_BYTES} bytes"
        )
    if not unpacker.eof:
        raise malformed("body", "its gzip is cut off")
    if unpacker.unused_data:
        raise malformed("body", "something follows its gzip")
    return data
