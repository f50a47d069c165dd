"""The least that can be measured as an SEV-SNP firmware: 64 KiB with the tables of an OVMF.

The layout of the tables: edk2, OvmfPkg/ResetVector (a table of GUIDed entries that ends 32 bytes
before the end of the file, read backwards; the SEV metadata elsewhere, found by its offset).
"""

from __future__ import annotations

import struct
import uuid

SIZE = 64 << 10
_FOOTER = "96b582de-1fb2-45f7-baea-a366c55a082d"
_HASH_TABLE = "7255371f-3a3b-4b04-927b-1da6efa8d454"
_RESET_BLOCK = "00f771de-1a7e-4fcb-890e-68c77e2fb44e"
_METADATA = "dc886566-984a-4798-a75e-5585a7bf67cc"
SEC_MEM, SECRETS, CPUID, KERNEL_HASHES = 1, 2, 3, 0x10


def _entry(guid: str, data: bytes) -> bytes:
    return data + struct.pack("<H", len(data) + 18) + uuid.UUID(guid).bytes_le


def tiny_firmware(*, kernel_hashes: bool = True, filling: bytes = b"\x90") -> bytes:
    """`kernel_hashes` False: as an older OVMF, which cannot measure a direct kernel."""
    sections = [
        (0x800000, 0x2000, SEC_MEM),
        (0x80D000, 0x1000, SECRETS),
        (0x80E000, 0x1000, CPUID),
    ]
    if kernel_hashes:
        sections.append((0x810000, 0x1000, KERNEL_HASHES))
    items = b"".join(struct.pack("<III", *section) for section in sections)
    metadata = b"ASEV" + struct.pack("<III", 16 + len(items), 1, len(sections)) + items
    at = 0x1000
    entries = [
        (_HASH_TABLE, struct.pack("<II", 0x810400, 0x400)),
        (_RESET_BLOCK, struct.pack("<I", 0x80B004)),
        (_METADATA, struct.pack("<I", SIZE - at)),
    ]
    table = b"".join(_entry(guid, data) for guid, data in entries)
    table += struct.pack("<H", len(table) + 18) + uuid.UUID(_FOOTER).bytes_le
    image = bytearray(filling * SIZE)
    image[at : at + len(metadata)] = metadata
    image[SIZE - 32 - len(table) : SIZE - 32] = table
    return bytes(image)
