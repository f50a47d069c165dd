"""What is known of a part by its id, and what belongs to one board."""

from __future__ import annotations

import pytest

from agent.model.gpu import Gpu
from agent.model.gpu_boards import GpuBoard, gpu_boards
from agent.model.gpu_models import PARTS, Confidential, Form, part_of
from agent.model.ids import Bdf

C = Confidential
H100_SWITCH, A100_SWITCH, UNKNOWN = 0x22A3, 0x1AF1, 0x5A5A


def board(*devices: int, switches: tuple[int, ...] = ()) -> tuple[GpuBoard, ...]:
    gpus = [Gpu(bdf=Bdf(f"0000:{n + 1:02x}:00.0"), device=one) for n, one in enumerate(devices)]
    beside = [
        Gpu(bdf=Bdf(f"0000:{n + 0x80:02x}:00.0"), device=one, is_switch=True)
        for n, one in enumerate(switches)
    ]
    return gpu_boards([*gpus, *beside])


@pytest.mark.parametrize(
    ("device", "name", "form", "confidential"),
    [
        (0x2324, "NVIDIA H800 SXM", Form.HGX, C.BOARD),
        (0x2322, "NVIDIA H800 PCIe", Form.PCIE, C.ALONE),
        (0x233A, "NVIDIA H800L", Form.PCIE, C.ALONE),
        (0x232C, "NVIDIA H20 HBM3e", Form.HGX, C.BOARD),
        (0x29BC, "NVIDIA B100", Form.HGX, C.BOARD),
        (0x2343, "NVIDIA GH200", Form.SUPERCHIP, C.NEVER),
        (0x31A1, "NVIDIA GB300", Form.SUPERCHIP, C.NEVER),
        (0x2BB5, "NVIDIA RTX PRO 6000 Server", Form.PCIE, C.ALONE),
        (0x20B2, "NVIDIA A100 SXM 80 GB", Form.HGX, C.NEVER),
        (0x26B9, "NVIDIA L40S", Form.PCIE, C.NEVER),
        (H100_SWITCH, "NVIDIA NVSwitch (H100)", Form.SWITCH, C.BOARD),
    ],
)
def test_a_part_is_known_by_its_id(
    device: int, name: str, form: Form, confidential: Confidential
) -> None:
    part = part_of(device)
    assert (part.name, part.form, part.confidential) == (name, form, confidential)


@pytest.mark.parametrize(
    ("device", "architecture", "confidential"),
    [
        (0x235F, "hopper", C.UNKNOWN),  # of the chip's range, and in no table
        (0x29C0, "blackwell", C.UNKNOWN),
        (0x2684, "ada", C.NEVER),
        (0x2204, "ampere", C.NEVER),
        (0x13C2, None, C.NEVER),  # older than all of them
        (UNKNOWN, None, C.UNKNOWN),
        (None, None, C.UNKNOWN),
    ],
)
def test_an_id_that_is_in_no_table_tells_its_chip(
    device: int | None, architecture: str | None, confidential: Confidential
) -> None:
    part = part_of(device)
    assert (part.name, part.form) == (None, None)
    assert (part.architecture, part.confidential) == (architecture, confidential)


def test_every_part_is_where_its_chip_is_and_only_newer_ones_can_be_confidential() -> None:
    for device, part in PARTS.items():
        if part.form is not Form.SWITCH:
            unlisted = part_of(device | 0x7F)  # the last of each range is no part
            assert unlisted.architecture == part.architecture, f"{device:04x}"
        able = part.confidential is not C.NEVER
        assert able == (
            part.architecture in ("hopper", "blackwell") and part.form is not Form.SUPERCHIP
        ), f"{device:04x}"


@pytest.mark.parametrize("device", [0x2324, 0x2328, 0x2336, 0x233D, 0x230C, 0x235F, UNKNOWN])
def test_what_sits_beside_nvswitches_is_a_board(device: int) -> None:
    (one,) = board(*[device] * 8, switches=(H100_SWITCH,) * 4)
    assert one.is_hgx_hopper
    assert len(one.switches) == 4
    assert one.incomplete is None


def test_a_card_beside_the_switches_of_a_board_is_no_part_of_it() -> None:
    card, whole = board(*[0x2330] * 8, 0x2331, switches=(H100_SWITCH,) * 4)
    assert (card.is_hgx, card.switches, len(whole.gpus)) == (False, (), 8)


def test_an_unknown_part_without_switches_is_a_card() -> None:
    (one,) = board(UNKNOWN, UNKNOWN)
    assert (one.is_hgx, one.architecture) == (False, None)


def test_a_boards_switches_are_of_its_own_kind() -> None:
    ampere, hopper = board(*[0x20B2] * 8, *[0x2330] * 8, switches=(A100_SWITCH, H100_SWITCH))
    assert [switch.device for switch in ampere.switches] == [A100_SWITCH]
    assert [switch.device for switch in hopper.switches] == [H100_SWITCH]


@pytest.mark.parametrize(
    ("devices", "switches", "missing"),
    [
        ([0x2339] * 4, (), None),
        ([0x2337] * 2, (), None),
        ([0x2330] * 8, (H100_SWITCH,) * 4, None),
        ([0x20B0] * 8, (A100_SWITCH,) * 6, None),
        ([0x20B0] * 16, (A100_SWITCH,) * 12, None),
        ([0x2901] * 8, (), None),
        ([0x2321] * 3, (), None),  # cards
        ([0x2330] * 3, (), "2, 4 or 8 GPUs"),
        ([0x2330], (), "2, 4 or 8 GPUs"),
        ([0x2901] * 7, (), "2, 4 or 8 GPUs"),
        ([0x2330] * 4, (H100_SWITCH,) * 4, "8 GPUs beside its NVSwitches"),
        ([0x2330] * 8, (H100_SWITCH,) * 3, "4 NVSwitches"),
        ([0x20B0] * 8, (A100_SWITCH,) * 5, "6 NVSwitches"),
    ],
)
def test_a_whole_board_is_recognised_and_one_that_lacks_something_is_told(
    devices: list[int], switches: tuple[int, ...], missing: str | None
) -> None:
    (one,) = board(*devices, switches=switches)
    assert (one.incomplete is None) is (missing is None)
    assert (missing or "") in (one.incomplete or "")
