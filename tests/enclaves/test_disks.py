from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.enclaves.disks import ConfigDiskError, disk_bytes

MIB = 1 << 20


@given(st.binary(max_size=9000).filter(lambda payload: not payload.endswith(b"\0")))
def test_a_guest_that_strips_the_padding_gets_the_payload(payload: bytes) -> None:
    disk = disk_bytes(payload)
    assert disk.rstrip(b"\0") == payload
    assert len(disk) % 4096 == 0
    assert 0 < len(disk) < len(payload) + 4097


@pytest.mark.parametrize(("size", "disk_size"), [(0, 4096), (4096, 4096), (4097, 8192)])
def test_a_disk_is_as_small_as_whole_blocks_allow(size: int, disk_size: int) -> None:
    assert len(disk_bytes(b"x" * size)) == disk_size


def test_a_payload_of_exactly_one_mebibyte_fits() -> None:
    assert len(disk_bytes(b"x" * MIB)) == MIB


@pytest.mark.parametrize("payload", [b"x" * (MIB + 1), b"config\0"])
def test_what_a_guest_would_not_get_back_is_refused(payload: bytes) -> None:
    with pytest.raises(ConfigDiskError) as caught:
        disk_bytes(payload)
    assert "x" * 10 not in str(caught.value)
