"""GPUs over HTTP: the agreed fields, counts, numbers, and the one verb."""

from __future__ import annotations

import math
import socket
from typing import Any

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from agent.inventory.port import GpuConditionError
from agent.inventory.preparation.errors import GpuOwnedError
from agent.model.gpu import (
    CcMode,
    CcModes,
    GpuHealth,
    GpuProcess,
    GpuReason,
    GpuState,
    GpuUpkeep,
    HealthAction,
    ModeLimit,
    Severity,
    Sight,
)
from agent.model.ids import Bdf
from agent.model.inventory import HostInventory, TeeIds
from agent.model.pci import Aer, Bar, Link
from simulator.rows import instant
from tests.fakes.gpus import BDF, OTHER, gpu, inventory, quarantine

AGREED = (
    "bdf uuid serial name architecture memory_mib numa_node iommu_group driver cc_mode link ecc "
    "remapped_rows temperature_c power_w nvlink fabric processes owner state health seen_by"
)
FULL = gpu(
    uuid="GPU-1",
    name="NVIDIA H100",
    memory_mib=81559,
    device=0x2330,
    bars=(Bar(index=0, size_bytes=16 << 20, is_64bit=True, prefetchable=True),),
    cc_mode=CcModes(active=CcMode.ON),
    link=Link(speed_gts=32.0, width=16, max_speed_gts=32.0, max_width=16),
    aer=Aer(correctable=4, nonfatal=0, fatal=None),
    ecc={"enabled": True, "volatile": {"corrected": 3, "uncorrected": None}},
    remapped_rows={"correctable": 0, "uncorrectable": 2, "pending": True, "failure": False},
    temperature_c=41.0,
    tensor_percent=37.5,
    power_w=70.5,
    sm_clock_mhz=1980,
    memory_used_mib=40960,
    processes=(GpuProcess(pid=7),),
    health=GpuHealth(
        severity=Severity.ERROR,
        action=HealthAction.RESET,
        reasons=(
            GpuReason(code="xid_95", detail="XID 95: reset the GPU", since="2026-01-01T00:00:00Z"),
        ),
    ),
    state=GpuState.QUARANTINED,
    quarantine=quarantine(),
    seen_by=(Sight.PCI, Sight.NVML),
)


def show(api: Any, *gpus: Any, **more: Any) -> None:
    api.engine.gpus.inventory = inventory(*gpus, **more)
    api.engine.publish()


async def test_the_inventory_has_its_agreed_members_and_unknown_is_null(api) -> None:
    ids = TeeIds(kind="sev-snp", total=99, used=3)
    switch = gpu("0000:07:00.0", is_switch=True)
    show(api, FULL, gpu(OTHER), switches=(switch,), host=HostInventory(tee_ids=(ids,)))
    shown = (await api.ask("GET", "/v1/inventory")).json
    assert set(shown) == {"gpus", "switches", "host", "observed_at", "complete"}
    first, second = shown["gpus"]
    assert set(AGREED.split()) <= set(first)
    assert first["cc_mode"] == {"active": "on", "pending": None}
    assert first["aer"] == {"correctable": 4, "nonfatal": 0, "fatal": None}
    assert first["processes"] == [{"pid": 7, "memory_mib": None}]
    assert first["quarantine"]["reason"] == "it failed three launches"
    assert first["health"]["reasons"][0]["code"] == "xid_95"
    assert (first["bar_mib"], first["device_id"], first["seen_by"]) == (
        16,
        "2330",
        ["pci", "nvml"],
    )
    for name in ("uuid", "memory_mib", "ecc", "temperature_c", "processes", "bar_mib", "owner"):
        assert second[name] is None
    assert shown["switches"][0]["bdf"] == "0000:07:00.0"
    assert shown["host"]["tee_ids"] == [{"kind": "sev-snp", "total": 99, "used": 3}]


async def test_before_the_first_look_the_inventory_is_not_known(api) -> None:
    answer = await api.ask("GET", "/v1/inventory")
    assert (answer.status, answer.json["code"]) == (503, "starting")


async def test_the_status_counts_gpus_by_state_and_an_absent_one_is_none(api) -> None:
    states = [GpuState.FREE, GpuState.FREE, GpuState.IN_USE, GpuState.DIRTY, GpuState.ABSENT]
    show(api, *(gpu(f"0000:0{n}:00.0", state=state) for n, state in enumerate(states)))
    counts = (await api.ask("GET", "/status")).json["gpus"]
    assert counts == {
        "total": 4,
        "free": 2,
        "in_use": 1,
        "preparing": 0,
        "dirty": 1,
        "unhealthy": 0,
        "quarantined": 0,
    }


async def test_a_quarantine_is_lifted_by_whoever_is_named(api) -> None:
    show(api, FULL)
    answer = await api.ask("POST", f"/v1/gpus/{BDF}/release")
    assert (answer.status, answer.json["state"], answer.json["quarantine"]) == (200, "free", None)
    assert [call[:2] for call in api.engine.gpus.calls] == [("release", BDF)]
    assert api.engine.gpus.calls[0][2].startswith("local:")


async def test_the_same_key_releases_once(api) -> None:
    show(api, FULL)
    key = {"Idempotency-Key": "once"}
    first = await api.ask("POST", f"/v1/gpus/{BDF}/release", headers=key)
    second = await api.ask("POST", f"/v1/gpus/{BDF}/release", headers=key)
    assert first.json == second.json
    assert len(api.engine.gpus.calls) == 1


@pytest.mark.parametrize("name", ["0000:ff:00.0", "nonsense", "0000:18:00", "..%2f..%2fetc"])
async def test_what_is_no_gpu_is_not_found(api, name: str) -> None:
    show(api, FULL)
    answer = await api.ask("POST", f"/v1/gpus/{name}/release")
    assert (answer.status, answer.json["code"]) == (404, "not_found")


async def test_a_refusal_says_why(api) -> None:
    show(api, FULL)
    api.engine.gpus.raises = GpuConditionError("gpu_beyond_repair", "GPU x must be returned")
    answer = await api.ask("POST", f"/v1/gpus/{BDF}/release")
    assert (answer.status, answer.json["code"]) == (409, "gpu_beyond_repair")


async def metrics(api) -> dict[str, list[tuple[dict[str, str], float]]]:
    text = (await api.ask_status("GET", "/metrics")).text
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


async def test_numbers_have_the_exporters_names_and_labels(api) -> None:
    owned = gpu(
        OTHER, guest={"utilization_percent": 93.0, "memory_used_gib": 2.0}, owner="abcdefgh"
    )
    show(api, FULL, owned)
    found = await metrics(api)
    host = {"Hostname": socket.gethostname()}
    named = {"UUID": "GPU-1", "modelName": "NVIDIA H100"}
    labels = {"gpu": "0", "pci_bus_id": "00000000:18:00.0", **named, **host}
    for name, value in {
        "POWER_USAGE": 70.5,
        "SM_CLOCK": 1980.0,
        "FB_TOTAL": 81559.0,
        "ECC_SBE_VOL_TOTAL": 3.0,
        "UNCORRECTABLE_REMAPPED_ROWS": 2.0,
        "ROW_REMAP_PENDING": 1.0,
        "ROW_REMAP_FAILURE": 0.0,
        "XID_ERRORS": 95.0,
        "PCIE_LINK_WIDTH": 16.0,
    }.items():
        assert found[f"DCGM_FI_DEV_{name}"] == [(labels, value)], name
    guests = {"gpu": "1", "UUID": "", "pci_bus_id": "00000000:2A:00.0", "modelName": "", **host}
    assert found["DCGM_FI_DEV_GPU_UTIL"] == [(guests, 93.0)]
    assert found["DCGM_FI_PROF_PIPE_TENSOR_ACTIVE"] == [(labels, 0.375)]
    assert found["DCGM_FI_DEV_FB_USED"] == [(labels, 40960.0), (guests, 2048.0)]


async def test_a_dashboard_finds_each_gpu_of_which_something_is_known(api) -> None:
    """Its variables are the labels of the temperatures; what is no number there is not drawn."""
    told = {"utilization_percent": 93.0, "memory_used_gib": 2.0}
    show(api, FULL, gpu(OTHER, guest=told, owner="abcdefgh"), gpu("0000:9a:00.0"))
    found = (await metrics(api))["DCGM_FI_DEV_GPU_TEMP"]
    values = {labels["gpu"]: value for labels, value in found}
    assert values["0"] == 41.0
    assert math.isnan(values["1"])
    assert set(values) == {"0", "1"}


async def test_what_a_dashboard_sums_over_gpus_is_right_whoever_has_them(api) -> None:
    """Panels are by the label `gpu`: all of a host differ, and each keeps its own."""
    told = {"utilization_percent": 50.0, "memory_used_gib": 300.0}
    buses = (0x2A, 0x18, 0x3A, 0x5D, 0x9A)  # in no order
    board = [
        gpu(f"0000:{bus:02x}:00.0", guest=told, owner="abcdefgh", power_w=300.0 + bus)
        for bus in buses[:4]
    ]
    other = {"memory_used_gib": 7.0}
    show(api, *board, gpu("0000:9a:00.0", guest=other, owner="bbbbbbbb", power_w=100.0))
    found = await metrics(api)
    power = {labels["gpu"]: value for labels, value in found["DCGM_FI_DEV_POWER_USAGE"]}
    assert power == {"0": 324.0, "1": 342.0, "2": 358.0, "3": 393.0, "4": 100.0}
    used = {labels["gpu"]: value for labels, value in found["DCGM_FI_DEV_FB_USED"]}
    assert used == {"0": 76800.0, "1": 76800.0, "2": 76800.0, "3": 76800.0, "4": 7168.0}
    gone = [msgspec.structs.replace(one, state=GpuState.ABSENT, power_w=None) for one in board[:1]]
    show(api, *gone, *board[1:])
    left = (await metrics(api))["DCGM_FI_DEV_POWER_USAGE"]
    assert {labels["gpu"]: value for labels, value in left} == {
        number: power[number] for number in ("0", "2", "3")
    }


async def test_what_is_not_known_is_absent_from_the_numbers(api) -> None:
    show(api, gpu(OTHER))
    found = await metrics(api)
    assert not [name for name in found if name.startswith("DCGM_")]
    states = {labels["state"]: value for labels, value in found["enclave_agent_gpu_state"]}
    assert states["dirty"] == 1
    assert sum(states.values()) == 1


async def test_pcie_errors_are_counted_per_severity(api) -> None:
    show(api, FULL)
    found = (await metrics(api))["enclave_agent_gpu_pcie_errors_total"]
    assert {labels["severity"]: value for labels, value in found} == {
        "correctable": 4.0,
        "nonfatal": 0.0,
    }


async def test_a_broken_gpu_is_recovered_and_shown_as_it_is_then(api) -> None:
    show(api, FULL)
    answer = await api.ask("POST", f"/v1/gpus/{BDF}/recover")
    assert (answer.status, answer.json["bdf"]) == (200, BDF)
    assert api.engine.preparation.recovered == [BDF]
    api.engine.preparation.raises = GpuOwnedError(Bdf(BDF), "is web's")
    answer = await api.ask("POST", f"/v1/gpus/{BDF}/recover")
    assert (answer.status, answer.json["code"]) == (409, "gpu_owned")
    for unknown in ("0000:ff:00.0", "nonsense"):
        answer = await api.ask("POST", f"/v1/gpus/{unknown}/recover")
        assert (answer.status, answer.json["code"]) == (404, "not_found")


async def test_how_the_work_on_a_gpu_goes_is_shown(api) -> None:
    limit = ModeLimit(mode=CcMode.PPCIE, code="gpu_mode_unsupported", detail="no", mend="update")
    old = msgspec.structs.replace(instant(), boot_id="another")
    upkeep = GpuUpkeep(fault="held", mend="stop it", limits=(limit,), resets=(instant(), old))
    show(api, gpu(upkeep=upkeep, left_alone="gpus.exclude names it"))
    (shown,) = (await api.ask("GET", "/v1/inventory")).json["gpus"]
    assert shown["upkeep"]["limits"][0]["mode"] == "ppcie"
    assert (shown["upkeep"]["resets"], shown["upkeep"]["resets_allowed"]) == (1, 20)
    assert (shown["upkeep"]["fault"], shown["left_alone"]) == ("held", "gpus.exclude names it")
