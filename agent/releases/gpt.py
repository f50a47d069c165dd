"""A GUID partition table, read as the guest's kernel reads it: the primary, with its checksums.

Format: UEFI specification 2.10, section 5 (protective MBR 5.2.3, header 5.3.2, entries 5.3.3). The
sector size is 512 bytes, as a disk image is seen by a guest. Numbers are little-endian.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import BinaryIO

SECTOR = 512

_HEADER = struct.Struct("<8sIIIIQQQQ16sQIII")
_ENTRY = struct.Struct("<16s16sQQQ72s")
_UNUSED = bytes(16)
_MAX_ENTRIES = 1024


class GptError(Exception):
    """There is no usable partition table."""


@dataclass(frozen=True, slots=True)
class Partition:
    """Where a partition lies, in bytes."""

    offset: int
    size: int


def read_partitions(disk: BinaryIO, disk_size: int) -> dict[int, Partition]:
    """The used partitions by number, from 1. GptError says what is wrong with the table."""
    _check_protective_mbr(_read(disk, 0, SECTOR))
    header = _read(disk, SECTOR, SECTOR)
    (signature, _, header_size, header_crc, _, this_lba, _, first_usable, last_usable, _) = (
        _HEADER.unpack_from(header)[:10]
    )
    entries_lba, count, entry_size, entries_crc = _HEADER.unpack_from(header)[10:]
    if signature != b"EFI PART":
        raise GptError("no GUID partition table")
    if not _HEADER.size <= header_size <= SECTOR:
        raise GptError("the partition table's header has an impossible size")
    blank = header[:16] + bytes(4) + header[20:header_size]
    if zlib.crc32(blank) != header_crc or this_lba != 1:
        raise GptError("the partition table's header is damaged")
    if not 0 < count <= _MAX_ENTRIES or entry_size < _ENTRY.size or entry_size > 4096:
        raise GptError("the partition table has an impossible number or size of entries")
    if entries_lba * SECTOR + count * entry_size > disk_size:
        raise GptError("the disk ends within its partition table")
    entries = _read(disk, entries_lba * SECTOR, count * entry_size)
    if zlib.crc32(entries) != entries_crc:
        raise GptError("the partition table's entries are damaged")
    found: dict[int, Partition] = {}
    for index in range(count):
        kind, _, first, last, *_ = _ENTRY.unpack_from(entries, index * entry_size)
        if kind == _UNUSED:
            continue
        if not first_usable <= first <= last <= last_usable or (last + 1) * SECTOR > disk_size:
            raise GptError(f"partition {index + 1} does not lie within the disk")
        found[index + 1] = Partition(first * SECTOR, (last + 1 - first) * SECTOR)
    return found


def _check_protective_mbr(sector: bytes) -> None:
    """The kernel looks for a GUID table only behind an MBR that protects one."""
    kinds = [sector[446 + 16 * index + 4] for index in range(4)]
    if sector[510:] != b"\x55\xaa" or 0xEE not in kinds:
        raise GptError("no protective master boot record")


def _read(disk: BinaryIO, offset: int, size: int) -> bytes:
    disk.seek(offset)
    data = disk.read(size)
    if len(data) != size:
        raise GptError("the disk ends within its partition table")
    return data
