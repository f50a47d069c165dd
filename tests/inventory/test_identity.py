"""Which GPU is which, over drivers, reboots and swapped cards."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from agent.inventory.identity import recall
from agent.model.gpu import KnownGpu
from agent.model.ids import Bdf
from agent.model.pci import PciKind
from simulator.rows import instant
from tests.fakes.gpus import BDF, OTHER, function, known, quarantine, seen

NOW = instant(2000)


def learned(uuid: str, bdf: str) -> KnownGpu:
    return known(uuid, bdf, learned_at=NOW)


def test_a_gpu_that_nvml_never_saw_is_known_by_its_place():
    found = recall([function()], {}, [], NOW)
    assert found.present[BDF].key == f"at:place-of-{BDF}"
    assert found.changed == [found.present[BDF]]
    assert found.present[BDF].uuid is None


def test_what_nvml_says_is_learned_and_the_place_is_no_longer_its_name():
    row = known(None)
    found = recall([function()], {BDF: seen()}, [row], NOW)
    assert found.present[BDF] == learned("GPU-1", BDF)
    assert found.changed == [learned("GPU-1", BDF)]
    assert found.outdated == [row.key]


def test_nothing_is_written_while_nothing_changes():
    found = recall([function()], {BDF: seen()}, [known()], NOW)
    assert (found.changed, found.outdated, found.absent) == ([], [], [])


def test_a_gpu_given_to_a_guest_is_still_known():
    found = recall([function(driver="vfio-pci")], {}, [known()], NOW)
    assert found.present[BDF] == known()
    assert found.changed == []


def test_a_field_that_a_driver_does_not_tell_does_not_forget_what_another_told():
    told = msgspec.structs.replace(seen(), serial=None, module_id=None)
    assert recall([function()], {BDF: told}, [known()], NOW).present[BDF].serial == "S-GPU-1"


def test_a_reboot_that_renumbers_the_buses_changes_the_bdf_and_not_the_gpu():
    renumbered = function("0000:19:00.0", location=f"place-of-{BDF}", driver="vfio-pci")
    found = recall([renumbered], {}, [known()], NOW)
    row = found.present[Bdf("0000:19:00.0")]
    assert (row.uuid, row.bdf) == ("GPU-1", "0000:19:00.0")
    assert found.changed == [row]


def test_two_gpus_that_swapped_slots_are_told_apart_by_nvml():
    rows = [known("GPU-1", BDF), known("GPU-2", OTHER)]
    says = {BDF: seen(BDF, "GPU-2"), OTHER: seen(OTHER, "GPU-1")}
    found = recall([function(BDF), function(OTHER)], says, rows, NOW)
    assert found.present[BDF].uuid == "GPU-2"
    assert found.present[OTHER].uuid == "GPU-1"
    assert found.absent == []


def test_a_card_that_moved_is_not_taken_for_the_one_whose_place_it_has():
    """GPU-1 now sits where GPU-2 sat; GPU-2 is not to be seen by NVML at its new place."""
    rows = [known("GPU-1", BDF), known("GPU-2", OTHER)]
    found = recall([function(BDF), function(OTHER)], {OTHER: seen(OTHER, "GPU-1")}, rows, NOW)
    assert found.present[OTHER].uuid == "GPU-1"
    assert found.present[BDF].uuid is None
    assert [(row.uuid, row.location, row.bdf) for row in found.absent] == [("GPU-2", None, None)]


def test_another_part_in_the_same_slot_is_another_gpu():
    found = recall([function(device=0x2901)], {}, [known()], NOW)
    assert found.present[BDF].uuid is None
    assert [row.uuid for row in found.absent] == ["GPU-1"]


def test_a_gpu_that_was_taken_out_is_absent_and_keeps_its_place():
    found = recall([], {}, [known()], NOW)
    assert found.absent == found.changed == [known(present=False)]
    again = recall([], {}, found.changed, NOW)
    assert (again.absent, again.changed) == (found.absent, [])
    assert recall([function()], {}, found.absent, NOW).changed == [known()]


def test_a_quarantine_of_a_place_goes_over_to_the_gpu_that_turns_out_to_be_there():
    rows = [known(None, quarantine=quarantine()), known("GPU-1", None)]
    found = recall([function()], {BDF: seen()}, rows, NOW)
    assert found.present[BDF].quarantine == quarantine()
    assert found.outdated == [f"at:place-of-{BDF}"]


def test_a_quarantine_does_not_go_over_to_another_part():
    row = known(None, quarantine=quarantine())
    found = recall([function(device=0x2901)], {}, [row], NOW)
    assert found.present[BDF].quarantine is None
    assert found.outdated == []


def test_a_switch_is_remembered_as_one():
    switch = function("0000:07:00.0", kind=PciKind.SWITCH, device=0x22A3)
    assert recall([switch], {}, [], NOW).present[Bdf("0000:07:00.0")].is_switch


BDFS = [Bdf(f"0000:{bus:02x}:00.0") for bus in (1, 2, 3, 4)]
UUIDS = ["GPU-1", "GPU-2", "GPU-3", "GPU-4"]


@st.composite
def hosts(draw: st.DrawFn) -> list[tuple[dict[Bdf, str], dict[Bdf, str]]]:
    """Looks in order: which card sits where, and at which of them NVML can see."""
    looks = []
    for _ in range(draw(st.integers(1, 4))):
        cards = draw(st.permutations(UUIDS))
        there = draw(st.sets(st.sampled_from(BDFS)))
        placed = {bdf: cards[index] for index, bdf in enumerate(BDFS) if bdf in there}
        shown = draw(st.sets(st.sampled_from(BDFS)))
        looks.append((placed, {bdf: card for bdf, card in placed.items() if bdf in shown}))
    return looks


@given(hosts())
def test_nvml_is_always_believed_no_two_are_one_and_rows_stay_consistent(looks):
    rows: dict[str, KnownGpu] = {}
    for placed, shown in looks:
        says = {bdf: seen(bdf, uuid) for bdf, uuid in shown.items()}
        found = recall([function(bdf) for bdf in placed], says, rows.values(), NOW)
        for key in found.outdated:
            del rows[key]
        rows |= {row.key: row for row in found.changed}
        assert set(found.present) == set(placed)
        keys = [row.key for row in found.present.values()]
        assert len(set(keys)) == len(keys)
        for bdf, uuid in shown.items():
            assert found.present[bdf].uuid == uuid
        assert {row.key for row in found.absent} | set(keys) == set(rows)
        again = recall([function(bdf) for bdf in placed], says, rows.values(), NOW)
        assert (again.changed, again.outdated) == ([], [])
