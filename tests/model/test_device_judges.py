"""The judges of one device: its group, its link, its address space."""

from __future__ import annotations

import pytest

from agent.model.gpu_held import held_by
from agent.model.ids import Bdf
from agent.model.iommu_group import judge_group
from agent.model.pci import Bar, GroupMember, Link, PciKind
from agent.model.pci_bars import missing_space
from agent.model.pci_drivers import is_held, is_kept_for_guests, is_vfio, yields
from agent.model.pci_link import lost_lanes, lowered_speed, unknown_link
from agent.model.preparation import GpuCondition, is_clean, is_qualified
from agent.model.vfio_node import missing_node
from simulator.rows import instant
from tests.fakes.gpus import BDF, FULL_LINK, OTHER

K = PciKind


def member(bdf: str, kind: PciKind, driver: str | None = None) -> GroupMember:
    return GroupMember(bdf=Bdf(bdf), kind=kind, driver=driver)


GPU = member(BDF, K.GPU, "nvidia")


@pytest.mark.parametrize(
    ("driver", "vfio", "kept", "held", "yielding"),
    [
        (None, False, False, False, True),
        ("vfio-pci", True, True, False, True),
        ("nvgrace_gpu_vfio_pci", True, True, False, True),
        ("nvgrace-gpu-vfio-pci", True, True, False, True),
        ("mlx5_vfio_pci", True, True, False, True),
        ("pci-stub", False, True, False, True),
        ("pcieport", False, False, False, False),
        ("nvidia", False, False, True, True),
        ("nouveau", False, False, True, True),
        ("amdgpu", False, False, True, False),
        ("xhci_hcd", False, False, True, False),
        ("novfio_pcix", False, False, True, False),
    ],
)
def test_a_driver_is_known_by_its_name(
    driver: str | None, vfio: bool, kept: bool, held: bool, yielding: bool
) -> None:
    told = (is_vfio(driver), is_kept_for_guests(driver), is_held(driver), yields(driver))
    assert told == (vfio, kept, held, yielding)


@pytest.mark.parametrize("driver", [None, "vfio-pci", "xhci_hcd"])
def test_every_function_of_a_card_goes_with_it(driver: str | None) -> None:
    card = [
        GPU,
        member("0000:18:00.1", K.AUDIO, driver),
        member("0000:18:00.2", K.OTHER, driver),
        member("0000:18:00.3", K.OTHER, driver),
    ]
    group = judge_group(BDF, 11, card)
    assert group.mates == tuple(one.bdf for one in card)
    assert (group.devices, group.is_viable, group.fault) == ((), True, None)


def test_a_virtual_function_does_not_go_with_its_card_and_one_in_use_holds_the_group() -> None:
    idle, used = (member("0000:18:00.4", K.VIRTUAL, driver) for driver in (None, "nvidia"))
    assert judge_group(BDF, 11, [GPU, idle]).mates == (BDF,)
    assert judge_group(BDF, 11, [GPU, idle]).is_viable
    assert judge_group(BDF, 11, [GPU, used]).held == (used,)


def test_two_cards_of_a_group_go_together_with_all_their_functions() -> None:
    audio = member("0000:2a:00.1", K.AUDIO, "snd_hda_intel")
    group = judge_group(BDF, 11, [GPU, member(OTHER, K.GPU), audio])
    assert (group.mates, group.devices) == ((BDF, OTHER, audio.bdf), (OTHER,))


def test_what_is_in_the_way_is_told_with_who_has_it_and_what_mends_it() -> None:
    disk = member("0000:03:00.0", K.OTHER, "nvme")
    group = judge_group(BDF, 11, [GPU, disk, member("0000:00:01.0", K.BRIDGE, "pcieport")])
    assert group.fault == (
        "shares its IOMMU group with 0000:03:00.0 (with nvme), which the host uses"
    )
    assert "ACS" in group.mend
    alone = judge_group(BDF, None, [])
    assert (alone.is_viable, alone.mates, alone.fault) == (False, (BDF,), "has no IOMMU group")
    assert "amd_iommu=on" in alone.mend


def test_a_link_is_held_against_what_both_its_ends_can_do() -> None:
    assert lost_lanes(FULL_LINK) is None
    assert lost_lanes(Link(width=8, max_width=8)) is None
    assert lost_lanes(Link(width=8, max_width=16)) == "its link has 8 of 16 lanes"


@pytest.mark.parametrize("link", [Link(), Link(width=16), Link(max_width=16)])
def test_a_link_that_tells_nothing_is_neither_good_nor_bad(link: Link) -> None:
    assert lost_lanes(link) is None
    assert lowered_speed(link) is None
    assert "stay unseen" in (unknown_link(link) or "")
    assert unknown_link(FULL_LINK) is None


def test_a_sleeping_device_has_a_slow_link_by_design() -> None:
    slow = Link(speed_gts=2.5, width=16, max_speed_gts=32.0, max_width=16)
    assert lowered_speed(slow, power_state="D0") == "its link runs at 2.5 of 32 GT/s"
    assert lowered_speed(slow, power_state="D3hot") is None
    assert lowered_speed(FULL_LINK, power_state="D0") is None


def bar(index: int, mib: int, *, assigned: bool = True) -> Bar:
    return Bar(
        index=index,
        size_bytes=mib << 20,
        is_64bit=True,
        prefetchable=index > 0,
        assigned=assigned,
    )


@pytest.mark.parametrize(
    ("kind", "bars", "fault"),
    [
        (K.GPU, None, None),
        (K.GPU, (bar(0, 16), bar(2, 131072), bar(4, 32)), None),
        (K.GPU, (bar(0, 64), bar(2, 262144)), None),
        (K.GPU, (bar(0, 16), bar(1, 256), bar(3, 32), bar(5, 0)), None),
        (K.SWITCH, (bar(0, 32),), None),
        (K.GPU, (), "no BAR of it has an address"),
        (K.SWITCH, (), "no BAR of it has an address"),
        (K.GPU, (bar(0, 16),), "the BAR of its memory"),
        (K.GPU, (bar(0, 16), bar(4, 32)), "the BAR of its memory"),
        (K.GPU, (bar(0, 16), bar(2, 131072, assigned=False), bar(4, 32)), "its BAR 2"),
        (K.SWITCH, (bar(0, 32, assigned=False),), "its BAR 0"),
    ],
)
def test_address_space_that_is_missing_is_told(
    kind: PciKind, bars: tuple[Bar, ...] | None, fault: str | None
) -> None:
    told = missing_space(kind, bars)
    assert (told is None) is (fault is None)
    assert (fault or "") in (told or "")


VIRTUAL = "its virtual function 0000:18:00.4, which nvidia has"


@pytest.mark.parametrize(
    ("driver", "uses", "programs", "holders"),
    [
        (None, (), (), ()),
        ("nvidia", (), (), ()),
        ("vfio-pci", (), (), ()),
        ("amdgpu", (), (), ("the driver amdgpu",)),
        ("nvidia", (VIRTUAL,), (), (VIRTUAL,)),
        ("vfio-pci", (VIRTUAL,), (), (VIRTUAL,)),  # made of it by whoever has it for guests
        ("nvidia", (), ("process 7",), ("process 7",)),
        ("xe", (VIRTUAL,), ("process 7",), ("the driver xe", VIRTUAL, "process 7")),
    ],
)
def test_a_device_is_the_hosts_by_its_driver_its_parts_and_its_programs(
    driver: str | None,
    uses: tuple[str, ...],
    programs: tuple[str, ...],
    holders: tuple[str, ...],
) -> None:
    assert held_by(driver, uses, programs) == holders


def test_what_nobody_has_had_is_clean_and_not_qualified() -> None:
    seen = GpuCondition(bdf=Bdf(BDF), clean=True, since=instant())
    done = GpuCondition(bdf=Bdf(BDF), clean=True, used=True, since=instant())
    left = GpuCondition(bdf=Bdf(BDF), clean=False, used=True, since=instant())
    told = [(is_clean(row), is_qualified(row)) for row in (None, seen, done, left)]
    assert told == [(True, False), (True, False), (True, True), (False, False)]


@pytest.mark.parametrize(
    ("driver", "node", "made_here", "missing"),
    [
        ("vfio-pci", "vfio3", None, False),
        ("vfio-pci", "vfio3", False, False),
        ("vfio-pci", None, True, True),
        ("mlx5_vfio_pci", None, None, True),
        ("nvidia", None, False, True),
        ("nvidia", None, None, False),
        (None, None, True, False),
    ],
)
def test_a_file_for_iommufd_is_missing_where_it_should_be_or_never_will_be(
    driver: str | None, node: str | None, made_here: bool | None, missing: bool
) -> None:
    assert (missing_node(driver, node, made_here=made_here) is not None) is missing
