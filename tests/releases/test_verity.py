"""Verity: whatever `veritysetup format` made is recognised, and no changed byte of it is."""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.releases.verity import VerityError, verify_disk
from tests.fakes.release_parts import Disk, make_disk

BLOCK = 4096


def blocks(count: int) -> bytes:
    return hashlib.shake_128(b"%d" % count).digest(count * BLOCK)


# 1: no tree; 128 and 129: one level full, two levels; 16385: three levels.
@pytest.mark.parametrize("count", [1, 2, 127, 128, 129, 255, 256, 257, 1000, 16384, 16385])
def test_disks_of_many_sizes_are_recognised(tmp_path: Path, count: int) -> None:
    disk = make_disk(tmp_path / "disk", blocks(count))
    verify_disk(disk.path, disk.root_hash)


@pytest.mark.parametrize("salt", ["-", "00", "ab" * 32, "ab" * 256])
def test_salts_of_every_length_are_used(tmp_path: Path, salt: str) -> None:
    disk = make_disk(tmp_path / "disk", blocks(130), salt)
    verify_disk(disk.path, disk.root_hash)


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Disk:
    return make_disk(tmp_path_factory.mktemp("verity") / "disk", blocks(300))


def flipped(disk: Disk, offset: int, mask: int = 1) -> Callable[[], None]:
    """Flip a bit in place; the result flips it back."""

    def flip() -> None:
        with disk.path.open("r+b") as file:
            file.seek(offset)
            byte = file.read(1)[0]
            file.seek(offset)
            file.write(bytes([byte ^ mask]))

    flip()
    return flip


def refused(disk: Disk, offset: int, mask: int = 1) -> str:
    back = flipped(disk, offset, mask)
    try:
        with pytest.raises(VerityError) as error:
            verify_disk(disk.path, disk.root_hash)
    finally:
        back()
    return str(error.value)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_flipped_bit_of_the_data_is_found(disk: Disk, place: float, bit: int) -> None:
    at = int(place * disk.data_size)
    told = refused(disk, disk.data_offset + at, 1 << bit)
    assert told == f"block {at // BLOCK} of its data is not what was hashed"


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_flipped_bit_of_the_tree_is_found(disk: Disk, place: float, bit: int) -> None:
    tree = disk.tree_size - BLOCK
    refused(disk, disk.tree_offset + BLOCK + int(place * tree), 1 << bit)


def test_every_byte_of_the_superblock_counts_but_the_uuid(disk: Disk) -> None:
    for offset in (*range(16), *range(32, 512)):
        refused(disk, disk.tree_offset + offset)
    for offset in range(16, 32):
        back = flipped(disk, disk.tree_offset + offset)
        verify_disk(disk.path, disk.root_hash)
        back()


def test_every_byte_of_the_partition_table_counts(disk: Disk) -> None:
    header, entries = 512, 1024
    for offset in (*range(header, header + 92), *range(entries, entries + 256)):
        refused(disk, offset)
    refused(disk, 510)  # the boot record's signature
    refused(disk, 446 + 4, 0xFF)  # the protective partition's type
    verify_disk(disk.path, disk.root_hash)


def test_another_root_hash_is_told_beside_the_one_found(disk: Disk) -> None:
    with pytest.raises(VerityError, match=f"its verity root hash is {disk.root_hash}, not 0000"):
        verify_disk(disk.path, "0" * 64)


@pytest.mark.parametrize("size", [0, 1, 511, 512, 1000, 20_000, 1 << 20, (1 << 20) + 5000])
def test_a_cut_disk_is_refused(disk: Disk, tmp_path: Path, size: int) -> None:
    cut = tmp_path / "cut"
    cut.write_bytes(disk.path.read_bytes()[:size])
    with pytest.raises(VerityError):
        verify_disk(cut, disk.root_hash)


def spoil_table(disk: Disk, target: Path, offset: int, value: bytes) -> Path:
    """A disk with another partition table whose checksums are right again."""
    data = bytearray(disk.path.read_bytes())
    data[offset : offset + len(value)] = value
    count, size = struct.unpack_from("<II", data, 512 + 80)
    if count * size < len(data):
        struct.pack_into("<I", data, 512 + 88, zlib.crc32(data[1024 : 1024 + count * size]))
    data[512 + 16 : 512 + 20] = bytes(4)
    length = struct.unpack_from("<I", data, 512 + 12)[0]
    struct.pack_into("<I", data, 512 + 16, zlib.crc32(data[512 : 512 + min(length, 512)]))
    target.write_bytes(data)
    return target


@pytest.mark.parametrize(
    ("offset", "value", "told"),
    [
        (512 + 12, struct.pack("<I", 91), "impossible size"),
        (512 + 12, struct.pack("<I", 1 << 30), "impossible size"),
        (512 + 24, struct.pack("<Q", 2), "damaged"),
        (512 + 72, struct.pack("<Q", 1 << 40), "ends within its partition table"),
        (512 + 80, struct.pack("<I", 1 << 30), "impossible number"),
        (512 + 84, struct.pack("<I", 64), "impossible number"),
        (1024 + 32, struct.pack("<Q", 1), "partition 1 does not lie"),
        (1024 + 40, struct.pack("<Q", 1 << 50), "partition 1 does not lie"),
        (1024 + 128 + 32, struct.pack("<QQ", 9000, 8000), "partition 2 does not lie"),
        (1024 + 128, bytes(16), "lacks partition 1 .* or 2"),
        (1024 + 40, struct.pack("<Q", 2048 + 7), "more data than partition 1 holds"),
        (1024 + 128 + 40, None, "does not fit into partition 2"),
    ],
)
def test_a_table_that_lies_is_refused(
    disk: Disk, tmp_path: Path, offset: int, value: bytes | None, told: str
) -> None:
    if value is None:  # partition 2 ends after its superblock
        value = struct.pack("<Q", disk.tree_offset // 512 + 7)
    with pytest.raises(VerityError, match=told):
        verify_disk(spoil_table(disk, tmp_path / "disk", offset, value), disk.root_hash)


def test_other_trees_than_ours_are_refused(disk: Disk) -> None:
    for offset, mask, told in (
        (8, 3, "version 2"),
        (12, 1, "hash type 0"),
        (32 + 3, 1, "sha256"),
        (64 + 1, 0x30, "blocks of 4096"),
        (68 + 1, 0x30, "blocks of 4096"),
    ):
        assert told in refused(disk, disk.tree_offset + offset, mask)


def test_verification_can_be_abandoned(disk: Disk) -> None:
    def stop() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        verify_disk(disk.path, disk.root_hash, stop)
