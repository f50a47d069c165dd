"""The certificate table that an extended guest request gives beside a report. Pure.

Source: Guest Hypervisor Communication Block Standardization (56421), 4.1.8.1: entries of a GUID,
an offset and a length, ended by an entry of zeroes. The hypervisor wrote it: nothing is believed.
"""

from __future__ import annotations

import struct
from uuid import UUID

from agent.attestation.evidence import EvidenceError

_ENTRY = struct.Struct("<16sII")
_MAX_ENTRIES = 16
_END = bytes(16)
_NAMES = {
    UUID("63da758d-e664-4564-adc5-f4b93be8accd"): "vcek",
    UUID("a8074bc2-a25a-483e-aae6-39c045a0b8a1"): "vlek",
    UUID("4ab7b379-bbac-4fe4-a02f-05aef327c782"): "ask",
    UUID("c0b406a4-a803-4952-9743-3fb6014cd0ae"): "ark",
}


def parse_certificate_table(table: bytes) -> dict[str, bytes]:
    """DER certificates by the names vcek, vlek, ask and ark; entries of others are left out.

    Raises EvidenceError `certificate_table`: an entry outside the table, in its own header, or
    given twice, or a table without an end.
    """
    entries = _entries(table)
    header = (len(entries) + 1) * _ENTRY.size
    found: dict[str, bytes] = {}
    for guid, offset, size in entries:
        name = _NAMES.get(UUID(bytes=guid))
        if not size or offset < header or offset + size > len(table):
            raise _wrong(f"entry {UUID(bytes=guid)} lies outside the table's data")
        if name is None:
            continue
        if name in found:
            raise _wrong(f"there are two entries for the {name.upper()}")
        found[name] = table[offset : offset + size]
    return found


def _entries(table: bytes) -> list[tuple[bytes, int, int]]:
    entries: list[tuple[bytes, int, int]] = []
    for number in range(_MAX_ENTRIES + 1):
        if (number + 1) * _ENTRY.size > len(table):
            raise _wrong("it has no end")
        guid, offset, size = _ENTRY.unpack_from(table, number * _ENTRY.size)
        if guid == _END:
            if offset or size:
                raise _wrong("its last entry is not all zero")
            return entries
        entries.append((guid, offset, size))
    raise _wrong(f"it has more than {_MAX_ENTRIES} entries")


def _wrong(why: str) -> EvidenceError:
    return EvidenceError("certificate_table", f"the certificate table: {why}")
