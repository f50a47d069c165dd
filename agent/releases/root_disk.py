"""A root disk: GPT, partition 1 a squashfs, partition 2 its dm-verity tree. Standard library only.

The same content gives the same bytes, and so the same root hash: identifiers, salt and times are
fixed. The salt is not secret; the tree's strength does not rest on it.
"""

from __future__ import annotations

import re
import shutil
import struct
from pathlib import Path

from agent.releases.disk_tools import DiskToolError, pad, run_tool

# Not compressed: to inflate in an emulated guest costs more than to read.
SQUASHFS_OPTIONS = (
    *("-quiet", "-no-progress", "-mkfs-time", "0", "-processors", "1"),
    *("-noI", "-noD", "-noF", "-noX"),
)

_MIB = 1 << 20
_SECTOR = 512
_BLOCK = 4096
_METADATA = 8192
_SALT = "5c1e9a4f0d6b47a3b2e8f1907a6d3c5481fe20b97d4c6e8a13f5b2097ce4d681"
_VERITY_UUID = "6b1f0f5e-8d1c-4f0a-9a53-2f9d0f3c7e11"
_DISK_UUID = "0F2D6C1A-53C7-4C8E-9E0B-7A4E1D9B6C20"
# Kinds from the discoverable partitions specification: root-x86-64, root-x86-64-verity.
_PARTITIONS = (
    ("4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709", "3C9B7E52-1A44-4D0F-8B6C-5E2F9A7D1B30"),
    ("2C7357ED-EBD2-46D9-AEC1-23D437EC2BF5", "A4D81F6C-7B25-4E93-9C0A-8F3B6D2E5C41"),
)


def forget_root_time(squashfs: Path) -> None:
    """Set the time of a squashfs's root directory to 0: sqfstar takes the present, whatever it is
    told. Only for one made by SQUASHFS_OPTIONS, whose inodes are not compressed.

    Format: Linux, fs/squashfs/squashfs_fs.h. Metadata lies in blocks of 8 KiB, each behind a
    length of two bytes; an inode begins with its type, mode, uid, gid and mtime.
    """
    with squashfs.open("r+b") as file:
        superblock = file.read(96)
        (reference,) = struct.unpack_from("<Q", superblock, 32)
        (table,) = struct.unpack_from("<Q", superblock, 64)
        first, offset = reference >> 16, reference & 0xFFFF
        for index in range(offset + 8, offset + 12):
            block, within = divmod(index, _METADATA)
            file.seek(table + first + block * (_METADATA + 2) + 2 + within)
            file.write(b"\0")


def make_root_disk(data: Path, disk: Path) -> str:
    """Make the disk of a squashfs, and return the verity root hash. Pads the squashfs."""
    pad(data, _BLOCK)
    hashes = data.with_name(f"{data.name}.hashes")
    printed = run_tool(
        *("veritysetup", "format", f"--salt={_SALT}", f"--uuid={_VERITY_UUID}"),
        *(str(data), str(hashes)),
    )
    match = re.search(r"^Root hash:\s*([0-9a-f]{64})$", printed, re.MULTILINE)
    if not match:
        raise DiskToolError("veritysetup printed no root hash")
    _assemble(disk, data, hashes)
    hashes.unlink()
    return match.group(1)


def _assemble(disk: Path, data: Path, hashes: Path) -> None:
    """Lay the two partitions, aligned to 1 MiB."""
    sizes = [path.stat().st_size for path in (data, hashes)]
    spans = [size + -size % _MIB for size in sizes]
    starts = [_MIB, _MIB + spans[0]]
    with disk.open("wb") as out:
        out.truncate(starts[1] + spans[1] + _MIB)
    table = f"label: gpt\nlabel-id: {_DISK_UUID}\n"
    for start, size, (kind, uuid) in zip(starts, sizes, _PARTITIONS, strict=True):
        table += f"start={start // _SECTOR}, size={size // _SECTOR}, uuid={uuid}, type={kind}\n"
    run_tool("sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", str(disk), stdin=table)
    with disk.open("r+b") as out:
        for start, path in zip(starts, (data, hashes), strict=True):
            out.seek(start)
            with path.open("rb") as part:
                shutil.copyfileobj(part, out, _MIB)
