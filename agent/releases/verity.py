"""dm-verity: whether a disk is, to the last block, what a root hash says.

The on-disk format is that of `veritysetup format`: a superblock at the start of the hash partition
(cryptsetup, docs/on-disk-format: "Verity", version 1), then the tree, top level first (Linux,
Documentation/admin-guide/device-mapper/verity.rst). Hash type 1: a block's digest is
SHA-256(salt ‖ block), digests fill hash blocks of 4096 bytes, the rest of a block is zero.

The superblock itself is outside the tree. That is safe: another salt or size gives another root
hash. Only its uuid says nothing about the data; a change of it alone is not noticed, nor matters.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from agent.releases.gpt import GptError, Partition, read_partitions

BLOCK = 4096
_DIGEST = 32
_PER_BLOCK = BLOCK // _DIGEST
_CHUNK_BLOCKS = 2 * _PER_BLOCK  # 1 MiB of data, two hash blocks
_SUPERBLOCK = struct.Struct("<8sII16s32sIIQH6s256s168s")


class VerityError(Exception):
    """The disk is not what the root hash says, or has no verity tree that we know."""


@dataclass(frozen=True, slots=True)
class Superblock:
    """What it takes to compute the tree."""

    data_blocks: int
    salt: bytes


@dataclass(frozen=True, slots=True)
class _Area:
    """Blocks of one level: of the data, or of hashes."""

    name: str
    offset: int
    blocks: int


def verify_disk(path: Path, root_hash: str, check: Callable[[], None] = lambda: None) -> None:
    """Recompute the whole tree of a disk image: partition 1 holds the data, partition 2 the tree.

    Blocking, and as long as it takes to read the disk; `check` is called at least once a MiB and
    may raise to abandon it. Raises VerityError with what does not agree.
    """
    with path.open("rb", buffering=0) as disk:
        size = path.stat().st_size
        try:
            partitions = read_partitions(disk, size)
        except GptError as error:
            raise VerityError(str(error)) from error
        if 1 not in partitions or 2 not in partitions:
            raise VerityError("the disk lacks partition 1 (data) or 2 (verity)")
        data, tree = partitions[1], partitions[2]
        disk.seek(tree.offset)
        superblock = parse_superblock(disk.read(_SUPERBLOCK.size))
        areas = _areas(superblock, data, tree)
        _verify_top(disk, superblock.salt, areas[-1], root_hash)
        # From the top down: each level is believed once the one above was.
        for lower, upper in zip(reversed(areas[:-1]), reversed(areas[1:]), strict=True):
            _verify_level(disk, superblock.salt, lower, upper, check)


def parse_superblock(raw: bytes) -> Superblock:
    """Decode the first 512 bytes of a hash partition."""
    if len(raw) < _SUPERBLOCK.size:
        raise VerityError("the hash partition is too short for a superblock")
    (signature, version, hash_type, _, algorithm, data_size, hash_size, data_blocks, salt_size) = (
        _SUPERBLOCK.unpack_from(raw)[:9]
    )
    padding, salt, rest = _SUPERBLOCK.unpack_from(raw)[9:]
    if signature != b"verity\0\0":
        raise VerityError("the hash partition has no verity superblock")
    if version != 1 or hash_type != 1:
        raise VerityError(f"verity superblock version {version}, hash type {hash_type}: not 1, 1")
    if algorithm != b"sha256".ljust(32, b"\0"):
        raise VerityError("the verity tree does not use sha256")
    if data_size != BLOCK or hash_size != BLOCK:
        raise VerityError(f"the verity tree does not use blocks of {BLOCK} bytes")
    if salt_size > len(salt) or any(padding) or any(rest) or any(salt[salt_size:]):
        raise VerityError("the verity superblock is damaged")
    if data_blocks == 0:
        raise VerityError("the verity superblock says that there is no data")
    return Superblock(data_blocks=data_blocks, salt=salt[:salt_size])


def _areas(superblock: Superblock, data: Partition, tree: Partition) -> list[_Area]:
    """The data and, above it, each level of hashes; on disk the top level comes first."""
    if superblock.data_blocks * BLOCK > data.size:
        raise VerityError("the verity superblock says more data than partition 1 holds")
    counts: list[int] = []
    blocks = superblock.data_blocks
    while blocks > 1:
        blocks = -(-blocks // _PER_BLOCK)
        counts.append(blocks)
    if (1 + sum(counts)) * BLOCK > tree.size:
        raise VerityError("the verity tree does not fit into partition 2")
    areas = [_Area("data", data.offset, superblock.data_blocks)]
    for level, count in enumerate(counts):
        above = sum(counts[level + 1 :])
        areas.append(_Area(f"hash level {level}", tree.offset + (1 + above) * BLOCK, count))
    return areas


def _verify_top(disk: BinaryIO, salt: bytes, top: _Area, root_hash: str) -> None:
    """The root hash is that of the single top block, be it of hashes or of data."""
    block = _read(disk, top.offset, BLOCK)
    found = hashlib.sha256(salt + block).hexdigest()
    if found != root_hash:
        raise VerityError(f"its verity root hash is {found}, not {root_hash}")


def _verify_level(
    disk: BinaryIO, salt: bytes, lower: _Area, upper: _Area, check: Callable[[], None]
) -> None:
    """Each block of `lower` has the digest that the believed `upper` holds for it."""
    for first in range(0, lower.blocks, _CHUNK_BLOCKS):
        check()
        count = min(_CHUNK_BLOCKS, lower.blocks - first)
        chunk = memoryview(_read(disk, lower.offset + first * BLOCK, count * BLOCK))
        computed = _digests(salt, chunk)
        hash_blocks = -(-count // _PER_BLOCK)
        place = upper.offset + first // _PER_BLOCK * BLOCK
        stored = _read(disk, place, hash_blocks * BLOCK)
        if stored != computed.ljust(hash_blocks * BLOCK, b"\0"):
            index = next(
                (
                    i
                    for i in range(count)
                    if computed[i * _DIGEST :][:_DIGEST] != stored[i * _DIGEST :][:_DIGEST]
                ),
                count - 1,
            )
            raise VerityError(f"block {first + index} of its {lower.name} is not what was hashed")


def _digests(salt: bytes, chunk: memoryview) -> bytes:
    digests: list[bytes] = []
    for offset in range(0, len(chunk), BLOCK):
        digest = hashlib.sha256(salt)
        digest.update(chunk[offset : offset + BLOCK])
        digests.append(digest.digest())
    return b"".join(digests)


def _read(disk: BinaryIO, offset: int, size: int) -> bytes:
    """Exactly so much; an unbuffered read may stop short."""
    disk.seek(offset)
    parts: list[bytes] = []
    while size > 0:
        part = disk.read(size)
        if not part:
            raise VerityError("the disk ends early")
        parts.append(part)
        size -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
