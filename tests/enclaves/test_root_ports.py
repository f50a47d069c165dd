"""Which root ports a trust domain's devices have: by their board."""

from __future__ import annotations

import pytest

from agent.enclaves.root_ports import root_ports_for
from agent.model.gpu import Gpu
from tests.fakes.gpus import gpu

H100, H200, H100_PCIE, B200, B300, GB200, UNKNOWN = (
    0x2330,
    0x2335,
    0x2331,
    0x2901,
    0x3182,
    0x2941,
    0x9999,
)


def devices(count: int, device: int, switches: int = 0) -> list[Gpu]:
    return [gpu(f"0000:{n + 1:02x}:00.0", device=device) for n in range(count)] + [
        gpu(f"0001:{n:02x}:00.0", device=0x22A3, is_switch=True) for n in range(switches)
    ]


@pytest.mark.parametrize(
    ("of", "name"),
    [
        (devices(8, H100, 4), "hopper"),
        (devices(8, H200, 4), "hopper"),
        (devices(8, B200), "blackwell"),
        (devices(8, B300), "blackwell"),
        (devices(1, H100), "single"),
        (devices(1, H100_PCIE), "single"),
        (devices(1, B200), "single"),
        (devices(1, UNKNOWN), "single"),
        ([], None),
        (devices(8, H100), None),
        (devices(8, H100, 3), None),
        (devices(8, B200, 4), None),
        (devices(2, B200), None),
        (devices(4, B200), None),
        (devices(8, H100_PCIE), None),
        (devices(8, GB200), None),
        (devices(8, UNKNOWN), None),
        (devices(1, H100, 1), None),
        ([*devices(7, B200), *devices(8, B300)[7:]], None),
    ],
)
def test_ports_follow_the_board(of: list[Gpu], name: str | None) -> None:
    found = root_ports_for(of)
    assert (found.name if found else None) == name
