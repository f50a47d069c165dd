"""Which processors a host has, by /dev/sev: every socket, in the form of reports."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.host.sev import SevError, chip_ids
from tests.fakes.played_sev import PlayedSev

FIRST, SECOND = bytes(range(1, 65)), bytes(range(101, 165))
TURIN, OTHER_TURIN = b"\x11" * 8, b"\x22" * 8


@pytest.fixture
def device(tmp_path: Path) -> Path:
    made = tmp_path / "sev"
    made.touch()
    return made


@pytest.mark.parametrize(
    ("raw", "ids"),
    [
        (FIRST, (FIRST,)),
        (FIRST + SECOND, (FIRST, SECOND)),
        (FIRST + bytes(64), (FIRST,)),
        (bytes(64), ()),
        (TURIN, (TURIN.ljust(64, b"\0"),)),
        (TURIN + OTHER_TURIN, (TURIN.ljust(64, b"\0"), OTHER_TURIN.ljust(64, b"\0"))),
        (TURIN.ljust(64, b"\0"), (TURIN.ljust(64, b"\0"),)),
    ],
)
def test_every_socket_is_told_and_what_tells_nothing_is_not(
    device: Path, raw: bytes, ids: tuple[bytes, ...]
) -> None:
    sev = PlayedSev(raw)
    assert chip_ids(device, sev) == ids
    assert sev.asked == 2, "how long, then what"


@pytest.mark.parametrize(
    ("sev", "words"),
    [
        (PlayedSev(FIRST, refuses=0x0F), "SEV_GET_ID2: Input/output error, firmware error 0xf"),
        (PlayedSev(b""), "a length of 0 bytes"),
        (PlayedSev(bytes(5000)), "a length of 5000 bytes"),
        (PlayedSev(FIRST + b"1"), "65 bytes, which are no ids"),
    ],
)
def test_what_cannot_be_asked_says_why(device: Path, sev: PlayedSev, words: str) -> None:
    with pytest.raises(SevError, match=words):
        chip_ids(device, sev)


def test_a_host_without_the_device_says_so(tmp_path: Path) -> None:
    with pytest.raises(SevError, match="cannot be opened"):
        chip_ids(tmp_path / "none", PlayedSev(FIRST))
