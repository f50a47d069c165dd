"""One list out of PCI, NVML, memory and what the agent does."""

from __future__ import annotations

from typing import Any

import pytest

from agent.inventory.identity import recall
from agent.inventory.merge import merge
from agent.inventory.nvml.values import NvmlGpu, NvmlLook
from agent.model.gpu import (
    CcMode,
    CcModes,
    Gpu,
    GpuHealth,
    GpuProcess,
    GpuState,
    GpuUse,
    HealthAction,
    KnownGpu,
    Severity,
    Sight,
)
from agent.model.pci import PciFunction, PciKind
from simulator.rows import instant
from tests.fakes.gpus import BDF, function, known, quarantine, seen

BAD = GpuHealth(severity=Severity.ERROR, action=HealthAction.RESET)
HOPELESS = GpuHealth(severity=Severity.ERROR, action=HealthAction.REBOOT)


def merged(
    functions: list[PciFunction],
    *,
    nvml: list[NvmlGpu] | None = None,
    rows: list[KnownGpu] | None = None,
    use: GpuUse | None = None,
    health: GpuHealth | None = None,
    mode: CcMode | None = None,
) -> list[Gpu]:
    says = {one.bdf: one for one in nvml or ()}
    return list(
        merge(
            {one.bdf: one for one in functions},
            NvmlLook(gpus=tuple(nvml or ()), cc_mode=mode),
            recall(functions, says, rows or (), instant()),
            {BDF: use} if use else {},
            {BDF: health} if health else {},
        )
    )


def test_what_only_pci_shows_has_the_name_of_its_device_id_and_nothing_made_up():
    (gpu,) = merged([function(driver="vfio-pci")])
    assert (gpu.name, gpu.architecture) == ("NVIDIA H100 SXM", "hopper")
    assert gpu.seen_by == (Sight.PCI,)
    for name in ("uuid", "serial", "memory_mib", "ecc", "temperature_c", "power_w", "processes"):
        assert getattr(gpu, name) is None
    assert gpu.cc_mode == CcModes()


def test_nvml_enriches_what_it_sees():
    live = seen(temperature_c=41.0, power_w=68.5, ecc={"enabled": True}, processes=())
    (gpu,) = merged([function(driver="nvidia")], nvml=[live], mode=CcMode.OFF)
    assert (gpu.uuid, gpu.memory_mib, gpu.module_id) == ("GPU-1", 81559, 3)
    assert (gpu.temperature_c, gpu.power_w, gpu.ecc) == (41.0, 68.5, {"enabled": True})
    assert gpu.seen_by == (Sight.PCI, Sight.NVML)
    assert gpu.cc_mode.active is CcMode.OFF
    assert gpu.cc_mode.pending is None


def test_a_gpu_of_which_parts_are_somebodys_is_the_hosts():
    uses = ("its virtual function 0000:18:00.4, which nvidia has",)
    (gpu,) = merged([function(driver="nvidia", uses=uses)])
    assert (gpu.owner, gpu.state) == ("host", GpuState.IN_USE)
    (gpu,) = merged([function(driver="nvidia")])
    assert (gpu.owner, gpu.state) == (None, GpuState.FREE)


def test_what_was_learned_stays_while_a_guest_has_it_and_what_changes_does_not():
    (gpu,) = merged([function(driver="vfio-pci")], rows=[known()], use=GpuUse(owner="abcdefgh"))
    assert (gpu.uuid, gpu.serial, gpu.name) == ("GPU-1", "S-GPU-1", "NVIDIA H100 80GB HBM3")
    assert gpu.temperature_c is None
    assert (gpu.owner, gpu.state) == ("abcdefgh", GpuState.IN_USE)


def test_the_operators_tool_is_believed_over_nvml_about_the_mode():
    modes = CcModes(active=CcMode.ON, pending=CcMode.OFF)
    (gpu,) = merged([function()], nvml=[seen()], use=GpuUse(cc_mode=modes), mode=CcMode.OFF)
    assert gpu.cc_mode == modes


@pytest.mark.parametrize(
    ("driver", "owner", "state"),
    [
        (None, None, GpuState.FREE),
        ("vfio-pci", None, GpuState.FREE),
        ("nvidia", None, GpuState.FREE),
        ("nouveau", None, GpuState.FREE),
        ("nvidia-nvswitch", None, GpuState.FREE),
        ("nvgrace-gpu-vfio-pci", None, GpuState.FREE),
        ("nvgrace_gpu_vfio_pci", None, GpuState.FREE),
        ("pci-stub", None, GpuState.FREE),  # set aside for guests
        ("amdgpu", "host", GpuState.IN_USE),
    ],
)
def test_a_driver_that_does_not_yield_has_it_for_somebody(
    driver: str | None, owner: str | None, state: GpuState
):
    (gpu,) = merged([function(driver=driver)])
    assert (gpu.owner, gpu.state) == (owner, state)


def test_a_process_of_the_host_has_the_gpu():
    live = seen(processes=(GpuProcess(pid=7, memory_mib=512),))
    (gpu,) = merged([function(driver="nvidia")], nvml=[live])
    assert (gpu.owner, gpu.state) == ("host", GpuState.IN_USE)


@pytest.mark.parametrize(
    ("use", "row", "health", "state"),
    [
        (GpuUse(owner="abcdefgh"), known(quarantine=quarantine()), BAD, GpuState.IN_USE),
        (GpuUse(preparing=True), known(quarantine=quarantine()), BAD, GpuState.PREPARING),
        (GpuUse(clean=False), known(quarantine=quarantine()), BAD, GpuState.QUARANTINED),
        (GpuUse(clean=False), known(), BAD, GpuState.DIRTY),  # a reset is what both ask for
        (GpuUse(clean=False), known(), HOPELESS, GpuState.UNHEALTHY),
        (GpuUse(), known(), BAD, GpuState.UNHEALTHY),
        (GpuUse(clean=False), known(), GpuHealth(), GpuState.DIRTY),
        (GpuUse(), known(), GpuHealth(severity=Severity.WARNING), GpuState.FREE),
    ],
)
def test_what_is_done_with_it_comes_before_what_is_wrong_with_it(
    use: GpuUse, row: KnownGpu, health: GpuHealth, state: GpuState
):
    (gpu,) = merged([function()], rows=[row], use=use, health=health)
    assert gpu.state is state
    assert gpu.quarantine == row.quarantine


def test_a_gpu_that_is_gone_is_listed_as_absent_with_what_is_remembered():
    rest: dict[str, Any] = {"location": "elsewhere"}
    found = merged([function("0000:2a:00.0")], rows=[known(), known("GPU-2", None, **rest)])
    assert [(gpu.bdf, gpu.state) for gpu in found] == [
        (BDF, GpuState.ABSENT),
        ("0000:2a:00.0", GpuState.FREE),
    ]
    assert found[0].uuid == "GPU-1"
    assert found[0].seen_by == ()


def test_a_switch_is_in_the_list_and_says_so():
    (switch,) = merged([function(BDF, kind=PciKind.SWITCH, device=0x22A3)])
    assert switch.is_switch
    assert switch.name == "NVIDIA NVSwitch (H100)"
