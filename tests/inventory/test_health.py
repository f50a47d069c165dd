"""What is wrong with a GPU, and for how long that is believed."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.inventory.findings import Sighting, find, sightings, told
from agent.inventory.health import HealthRecord, after_reset, health_of, look, note
from agent.inventory.nvml.values import NvmlEvent, NvmlGpu, NvmlLook, NvmlSilence, Trouble
from agent.inventory.xids import XIDS, Advice, advice_on
from agent.model.gpu import CcMode, CcModes, GpuHealth, GpuUse, HealthAction, Severity
from agent.model.pci import Aer, Link, PciKind
from simulator.rows import instant
from tests.fakes.gpus import BDF, FULL_LINK, OTHER, function, seen

A, S = HealthAction, Severity
FACTS = Path(__file__).resolve().parents[2].parent / "shared/reference/gpu-hosts.md"


class Watched:
    """A GPU that is looked at every five seconds."""

    def __init__(self) -> None:
        self.record = HealthRecord()
        self.at = 1000.0

    def look(self, times: int = 1, *, nvml: NvmlGpu | None = None, **rest: Any) -> GpuHealth:
        changes = rest.pop("function", {})
        evidence = Sighting(function(**changes), nvml, nvml_works=rest.pop("nvml_works", True))
        if "use" in rest:
            evidence = Sighting(evidence.function, nvml, evidence.nvml_works, rest.pop("use"))
        for _ in range(times):
            self.record = look(self.record, evidence, instant(self.at))
            self.at += 5
        return health_of(self.record)

    def event(self, kind: str, data: int) -> GpuHealth:
        event = NvmlEvent(kind=kind, bdf=BDF, data=data)
        self.record = note(self.record, told(event), instant(self.at))
        return health_of(self.record)


def codes(health: GpuHealth) -> list[str]:
    return [reason.code for reason in health.reasons]


def test_a_well_gpu_has_nothing_to_say():
    assert Watched().look(10, nvml=seen()) == GpuHealth()


@pytest.mark.parametrize(
    ("changes", "code", "severity", "action"),
    [
        ({"lost": True}, "gpu_lost", S.ERROR, A.REBOOT),
        ({"reset_required": True}, "reset_required", S.ERROR, A.RESET),
        ({"remapped_rows": {"failure": True}}, "row_remap_failure", S.ERROR, A.RETURN),
        ({"remapped_rows": {"pending": True}}, "row_remap_pending", S.WARNING, A.RESET),
        ({"ecc": {"retired_pages_pending": True}}, "row_remap_pending", S.WARNING, A.RESET),
        ({"ecc": {"sram_threshold_exceeded": True}}, "sram_errors", S.ERROR, A.RETURN),
        ({"ecc": {"enabled": False}}, "ecc_off", S.WARNING, A.WATCH),
        ({"ecc": {"volatile": {"uncorrected": 2}}}, "ecc_uncorrected", S.WARNING, A.RESET),
        ({"mig": True}, "mig_on", S.WARNING, A.RESET),
        ({"mute": 999}, "nvml_mute", S.ERROR, A.RESET),
        ({"recovery": 1}, "recovery_action", S.ERROR, A.RESET),
        ({"recovery": 2}, "recovery_action", S.ERROR, A.REBOOT),
        ({"recovery": 3}, "recovery_action", S.WARNING, A.RESET),
        ({"recovery": 4}, "recovery_action", S.ERROR, A.RESET),
        ({"recovery": 5}, "recovery_action", S.WARNING, A.WATCH),
        ({"recovery": 6}, "recovery_action", S.ERROR, A.RESET),
        ({"recovery": 7}, "recovery_action", S.ERROR, A.REBOOT),
        ({"recovery": 4711}, "recovery_action", S.WARNING, A.WATCH),
    ],
)
def test_what_nvml_says_for_certain_is_believed_at_once(
    changes: dict[str, Any], code: str, severity: Severity, action: HealthAction
):
    health = Watched().look(nvml=seen(**changes))
    assert codes(health) == [code]
    assert (health.severity, health.action) == (severity, action)
    assert len(health.reasons[0].detail) > 10


@pytest.mark.parametrize(
    "changes",
    [
        {"recovery": 0},
        {"recovery": None},
        {"ecc": {"enabled": None, "volatile": {"uncorrected": None}}},
        {"remapped_rows": {"failure": None, "pending": None}},
        {"fabric": {"status": 0}},
        {"clocks_event_reasons": 1},
    ],
)
def test_what_is_not_known_and_what_is_usual_are_nothing_wrong(changes: dict[str, Any]):
    assert Watched().look(9, nvml=seen(**changes)) == GpuHealth()


@pytest.mark.parametrize(
    ("changes", "looks", "code", "severity", "action"),
    [
        ({"responds": False}, 2, "config_space_dead", S.ERROR, A.RESET),
        (
            {"link": Link(speed_gts=32.0, width=8, max_speed_gts=32.0, max_width=16)},
            3,
            "link_width_reduced",
            S.WARNING,
            A.RESET,
        ),
        ({"driver": "nvidia"}, 2, "nvml_unseen", S.ERROR, A.WATCH),
    ],
)
def test_what_may_be_of_a_moment_is_believed_after_some_looks_and_let_go_after_three(
    changes: dict[str, Any], looks: int, code: str, severity: Severity, action: HealthAction
):
    gpu = Watched()
    assert gpu.look(looks - 1, function=changes) == GpuHealth()
    assert gpu.look(1) == GpuHealth()
    assert gpu.look(looks - 1, function=changes) == GpuHealth()  # not in a row: counted afresh
    health = gpu.look(1, function=changes)
    assert codes(health) == [code]
    assert (health.severity, health.action) == (severity, action)
    assert codes(gpu.look(2)) == [code]
    assert codes(gpu.look(1, function=changes)) == [code]
    assert codes(gpu.look(2)) == [code]
    assert gpu.look(1) == GpuHealth()


def test_a_link_that_cannot_be_read_is_not_a_bad_link():
    assert Watched().look(9, function={"link": Link(max_speed_gts=32.0)}) == GpuHealth()


SLOW = Link(speed_gts=2.5, width=16, max_speed_gts=32.0, max_width=16)


@pytest.mark.parametrize(
    "changes",
    [
        {"driver": "vfio-pci", "power_state": "D0"},
        {"driver": "vfio-pci", "power_state": "D3hot"},
        {"driver": None},
        {"driver": "pci-stub"},
    ],
)
def test_a_gpu_that_nobody_uses_may_have_a_slow_link(changes: dict[str, Any]):
    assert Watched().look(9, function={"link": SLOW, **changes}) == GpuHealth()


def test_a_link_is_slow_for_a_reason_as_long_as_nobody_works_its_gpu():
    nvidia = {"link": SLOW, "driver": "nvidia"}
    assert Watched().look(9, function=nvidia, nvml=seen(utilization_percent=0)) == GpuHealth()
    busy = Watched().look(3, function=nvidia, nvml=seen(utilization_percent=97))
    assert (codes(busy), busy.severity) == (["link_speed_reduced"], S.WARNING)
    guest = Watched().look(3, function={"link": SLOW}, use=GpuUse(owner="abcdefgh"))
    assert (codes(guest), guest.severity) == (["link_speed_reduced"], S.INFO)  # it is not known


def test_since_is_when_it_was_seen_first_and_stays():
    gpu = Watched()
    gpu.look(1)
    first = gpu.look(1, nvml=seen(recovery=2)).reasons[0].since
    assert first == "2026-01-01T00:00:05Z"
    assert gpu.look(5, nvml=seen(recovery=2)).reasons[0].since == first


def test_a_finding_of_nvmls_stays_while_nvml_does_not_see_the_gpu():
    gpu = Watched()
    gpu.look(1, nvml=seen(remapped_rows={"failure": True}))
    assert codes(gpu.look(20, nvml=None)) == ["row_remap_failure"]
    assert gpu.look(3, nvml=seen(remapped_rows={"failure": False})) == GpuHealth()


def test_the_worst_and_the_weightiest_are_told_and_the_worst_is_first():
    gpu = Watched()
    health = gpu.look(nvml=seen(recovery=5, remapped_rows={"failure": True, "pending": True}))
    assert codes(health) == ["row_remap_failure", "recovery_action", "row_remap_pending"]
    assert (health.severity, health.action) == (S.ERROR, A.RETURN)


def test_a_gpu_that_the_driver_has_and_nvml_does_not_show_is_told():
    nvidia = {"driver": "nvidia"}
    health = Watched().look(2, function=nvidia)
    assert (codes(health), health.severity) == (["nvml_unseen"], S.ERROR)
    assert Watched().look(3, function=nvidia, nvml_works=False) == GpuHealth()
    assert Watched().look(3, function={"driver": "vfio-pci"}) == GpuHealth()
    hidden = GpuUse(cc_mode=CcModes(active=CcMode.ON))
    assert Watched().look(3, function=nvidia, use=hidden) == GpuHealth()


@pytest.mark.parametrize(("trouble", "action"), [("nvml_hung", A.WATCH), ("nvml_stuck", A.REBOOT)])
def test_a_driver_that_hangs_as_a_whole_gives_none_of_its_gpus_away(
    trouble: str, action: HealthAction
):
    functions = {
        one.bdf: one for one in (function(driver="nvidia"), function(OTHER, driver="vfio-pci"))
    }
    said = NvmlLook(
        trouble=Trouble(code=trouble, detail="x"),
        silent=(NvmlSilence(bdf=BDF), NvmlSilence(bdf=OTHER)),
    )
    looks = sightings(functions, said, {})
    (one,) = find(looks[BDF])
    assert (one.code, one.severity, one.action) == (trouble, S.ERROR, action)
    assert find(looks[OTHER]) == ()  # it is with vfio, whatever NVML thought of it before


def test_a_gpu_that_nobody_knows_beside_nvswitches_is_judged_as_one_of_a_board():
    switch = function(OTHER, kind=PciKind.SWITCH, device=0x22A3, driver="nvidia-nvswitch")
    gpu = function(driver="nvidia", device=0x5A5A)
    said = NvmlLook(gpus=(seen(nvlink={"links": 18, "active": 0}),), driver_version="580.95.05")
    (one,) = find(sightings({BDF: gpu, OTHER: switch}, said, {})[BDF])
    assert (one.code, one.severity) == ("nvlinks_down", S.WARNING)
    assert find(sightings({BDF: gpu}, said, {})[BDF]) == ()


@pytest.mark.parametrize("code", ["nvml_no_driver", "nvml_forbidden", "nvml_crashed"])
def test_an_nvml_that_cannot_be_used_says_nothing_of_any_gpu(code: str):
    said = NvmlLook(trouble=Trouble(code=code, detail="x"))
    looks = sightings({BDF: function(driver="nvidia")}, said, {})
    assert find(looks[BDF]) == ()


@pytest.mark.parametrize(
    ("error", "code", "severity", "action"),
    [
        (None, "nvml_hung", S.ERROR, A.RESET),
        (4, "nvml_forbidden", S.WARNING, A.WATCH),
        (8, "power_cables", S.ERROR, A.WATCH),
        (15, "gpu_lost", S.ERROR, A.REBOOT),
        (16, "reset_required", S.ERROR, A.RESET),
        (11, "nvml_refused", S.ERROR, A.RESET),
        (999, "nvml_refused", S.ERROR, A.RESET),
    ],
)
def test_a_gpu_of_which_nvml_tells_nothing_is_told_with_the_reason(
    error: int | None, code: str, severity: Severity, action: HealthAction
):
    silent = Sighting(function(driver="nvidia"), silence=NvmlSilence(bdf=BDF, error=error))
    (one,) = find(silent)
    assert (one.code, one.severity, one.action, one.looks) == (code, severity, action, 1)
    gone = Sighting(function(driver="nvidia"), silence=NvmlSilence(bdf=BDF, error=6))
    (one,) = find(gone)
    assert (one.code, one.action) == ("nvml_unseen", A.RESET)
    hidden = GpuUse(cc_mode=CcModes(active=CcMode.ON))  # then the driver cannot use it by design
    assert find(dataclasses.replace(silent, use=hidden)) == ()


def test_counters_tell_by_their_growth_alone():
    gpu = Watched()
    old = {"aer": Aer(correctable=900, nonfatal=3, fatal=1)}
    assert gpu.look(2, function=old) == GpuHealth()  # of before we came
    assert gpu.look(1, function={"aer": Aer()}) == GpuHealth()
    assert gpu.look(1, function=old) == GpuHealth()  # was not known in between
    more = {"aer": Aer(correctable=901, nonfatal=5, fatal=2)}
    health = gpu.look(1, function=more)
    assert codes(health) == ["aer_fatal", "aer_nonfatal", "aer_correctable"]
    assert health.action is A.RESET
    assert "2 uncorrectable" in health.reasons[1].detail
    assert gpu.look(1, function={"aer": Aer(correctable=0, nonfatal=0, fatal=0)}) == health


def test_a_storm_of_corrected_errors_is_told_and_a_few_are_not():
    gpu = Watched()
    gpu.look(1, nvml=seen(ecc={"volatile": {"corrected": 5}}))
    assert gpu.look(1, nvml=seen(ecc={"volatile": {"corrected": 900}})) == GpuHealth()
    health = gpu.look(1, nvml=seen(ecc={"volatile": {"corrected": 2000}}))
    assert (codes(health), health.severity) == (["ecc_storm"], S.WARNING)


def test_an_xid_to_watch_is_forgotten_after_an_hour_and_one_to_reset_after_a_reset():
    gpu = Watched()
    gpu.event("xid", 31)
    gpu.event("xid", 31)
    health = gpu.event("xid", 95)
    assert codes(health) == ["xid_95", "xid_31"]
    assert (health.severity, health.action) == (S.ERROR, A.RESET)
    assert health.reasons[1].detail == "XID 31: restart the application (2 times)"
    gpu.at += 3600
    assert codes(gpu.look(1)) == ["xid_95"]
    gpu.record = after_reset(gpu.record)
    assert gpu.look(1) == GpuHealth()


def test_errors_that_a_reset_made_are_no_errors():
    gpu = Watched()
    gpu.look(1, function={"aer": Aer(fatal=0)})
    gpu.record = after_reset(gpu.record)
    assert gpu.look(2, function={"aer": Aer(fatal=9)}) == GpuHealth()
    assert codes(gpu.look(1, function={"aer": Aer(fatal=10)})) == ["aer_fatal"]


def test_a_reset_does_not_mend_what_needs_a_reboot_or_a_new_card():
    gpu = Watched()
    gpu.event("xid", 79)
    gpu.look(1, nvml=seen(remapped_rows={"failure": True, "pending": True}))
    gpu.record = after_reset(gpu.record)
    assert codes(gpu.look(1)) == ["row_remap_failure", "xid_79"]


@pytest.mark.parametrize(
    ("kind", "data", "severity", "action"),
    [
        ("unavailable", 1, S.ERROR, A.RESET),
        ("recovery_action", 2, S.WARNING, A.WATCH),
        ("xid", 79, S.ERROR, A.REBOOT),
        ("xid", 151, S.WARNING, A.WATCH),
        ("xid", 48, S.WARNING, A.WATCH),
        ("xid", 154, S.INFO, A.WATCH),
        ("xid", 108, S.INFO, A.WATCH),
        ("xid", 160, S.INFO, A.WATCH),
        ("xid", 162, S.INFO, A.WATCH),
        ("xid", 99999, S.WARNING, A.WATCH),
    ],
)
def test_events_have_their_weight(kind: str, data: int, severity: Severity, action: HealthAction):
    health = Watched().event(kind, data)
    assert (health.severity, health.action) == (severity, action)


def test_the_table_is_the_catalogues():
    if not FACTS.exists():
        pytest.skip("the facts about GPU hosts are not beside this checkout")
    words = {
        Advice.RESET_GPU: "reset GPU",
        Advice.REBOOT_HOST: "reboot host",
        Advice.RESTART_ENCLAVE: "restart enclave",
        Advice.RESTART_APPLICATION: "restart application",
        Advice.INVESTIGATE: "investigate",
        Advice.TRACK: "track only",
        Advice.INFORM: "informational",
    }
    rows = dict(
        re.findall(r"^\| ([A-Za-z ]+?) \| ([0-9 -]+) \|$", FACTS.read_text(), re.MULTILINE)
    )
    told: dict[int, Advice] = {}
    for advice, word in words.items():
        for part in rows[word].split():
            first, _, last = part.partition("-")
            told |= dict.fromkeys(range(int(first), int(last or first) + 1), advice)
    assert told == XIDS
    assert advice_on(12345) is Advice.INVESTIGATE


@given(
    st.lists(
        st.tuples(
            st.sampled_from([None, True, False]),  # what the configuration space says
            st.booleans(),  # whether NVML sees it
            st.booleans(),  # and says that a remap failed
        ),
        max_size=30,
    )
)
def test_no_run_of_looks_makes_a_failure_forgotten_unless_it_was_refuted_three_times(looks):
    gpu = Watched()
    refuted, failed = 0, False
    for responds, sees, failure in looks:
        nvml = seen(remapped_rows={"failure": failure}) if sees else None
        health = gpu.look(1, function={"responds": responds, "link": FULL_LINK}, nvml=nvml)
        if sees and failure:
            failed, refuted = True, 0
        elif sees:
            refuted += 1
        expected = failed and refuted < 3
        failed = expected
        assert ("row_remap_failure" in codes(health)) is expected
