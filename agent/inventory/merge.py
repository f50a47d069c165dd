"""One list of GPUs and switches: PCI, NVML, memory and what the agent does, merged. Pure.

PCI says what is there. NVML enriches what it sees. What is remembered fills in who a GPU is while
NVML cannot see it; what changes by the minute (temperature, errors) is never remembered.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from agent.inventory.identity import Recall
from agent.inventory.nvml.values import NvmlGpu, NvmlLook
from agent.model.gpu import (
    HOST,
    UNUSED,
    CcMode,
    CcModes,
    Gpu,
    GpuHealth,
    GpuState,
    GpuUse,
    HealthAction,
    KnownGpu,
    Severity,
    Sight,
)
from agent.model.gpu_held import held_by
from agent.model.gpu_models import Form, part_of
from agent.model.ids import Bdf
from agent.model.pci import PciFunction, PciKind


def merge(
    functions: Mapping[Bdf, PciFunction],
    nvml: NvmlLook,
    recalled: Recall,
    uses: Mapping[Bdf, GpuUse],
    health: Mapping[Bdf, GpuHealth],
    *,
    left: Mapping[Bdf, str] = MappingProxyType({}),
) -> tuple[Gpu, ...]:
    """Everything, by BDF: what is there, and what is remembered and is not.

    `left`: what is not ours to take, and why; it is the host's.
    """
    seen = {one.bdf: one for one in nvml.gpus}
    found = [
        _present(
            function,
            recalled.present[bdf],
            seen=seen.get(bdf),
            use=uses.get(bdf, UNUSED),
            health=health.get(bdf, GpuHealth()),
            mode=nvml.cc_mode,
            left=left.get(bdf),
        )
        for bdf, function in functions.items()
    ]
    found += [
        _absent(row, row.bdf, uses.get(row.bdf, UNUSED))
        for row in recalled.absent
        if row.bdf is not None
    ]
    return tuple(sorted(found, key=lambda gpu: gpu.bdf))


def _present(
    function: PciFunction,
    row: KnownGpu,
    *,
    seen: NvmlGpu | None,
    use: GpuUse,
    health: GpuHealth,
    mode: CcMode | None,
    left: str | None,
) -> Gpu:
    live = seen or NvmlGpu(bdf=function.bdf)
    owner = use.owner or (HOST if left or _host_has(function, live) else None)
    modes = use.cc_mode or CcModes(active=None if seen is None else mode)
    part = part_of(function.device)
    return Gpu(
        bdf=function.bdf,
        is_switch=function.kind is PciKind.SWITCH,
        uuid=row.uuid,
        serial=row.serial,
        module_id=row.module_id,
        name=row.name or part.name,
        architecture=row.architecture or (None if part.form is Form.SWITCH else part.architecture),
        memory_mib=row.memory_mib,
        device=function.device,
        numa_node=function.numa_node,
        iommu_group=function.iommu_group,
        group=function.group,
        bars=function.bars,
        reset_methods=function.reset_methods,
        can_reset=function.can_reset,
        driver=function.driver,
        vfio_device=function.vfio_device,
        cc_mode=modes,
        link=function.link,
        aer=function.aer,
        responds=function.responds,
        ecc=live.ecc,
        remapped_rows=live.remapped_rows,
        temperature_c=live.temperature_c,
        power_w=live.power_w,
        utilization_percent=live.utilization_percent,
        tensor_percent=live.tensor_percent,
        memory_used_mib=live.memory_used_mib,
        sm_clock_mhz=live.sm_clock_mhz,
        nvlink=live.nvlink,
        fabric=live.fabric,
        mig=live.mig,
        processes=live.processes,
        owner=owner,
        clean=use.clean,
        state=state_of(row, use, owner, health),
        health=health,
        quarantine=row.quarantine,
        upkeep=use.upkeep,
        left_alone=None if use.owner else left,
        seen_by=(Sight.PCI,) if seen is None else (Sight.PCI, Sight.NVML),
    )


def _absent(row: KnownGpu, bdf: Bdf, use: GpuUse) -> Gpu:
    return Gpu(
        bdf=bdf,
        is_switch=row.is_switch,
        uuid=row.uuid,
        serial=row.serial,
        module_id=row.module_id,
        name=row.name,
        architecture=row.architecture,
        memory_mib=row.memory_mib,
        device=row.device,
        owner=use.owner,
        state=GpuState.ABSENT,
        quarantine=row.quarantine,
    )


def state_of(row: KnownGpu, use: GpuUse, owner: str | None, health: GpuHealth) -> GpuState:
    """The one word. What is being done with it comes before what is wrong with it.

    So does the reset that a dirty one gets in any case, if that is what its health asks for.
    """
    if use.owner is not None:
        return GpuState.IN_USE
    if use.preparing:
        return GpuState.PREPARING
    if row.quarantine is not None:
        return GpuState.QUARANTINED
    about_to_be_reset = not use.clean and health.action is HealthAction.RESET
    if health.severity is Severity.ERROR and not about_to_be_reset:
        return GpuState.UNHEALTHY
    if owner is not None:
        return GpuState.IN_USE
    return GpuState.FREE if use.clean else GpuState.DIRTY


def _host_has(function: PciFunction, live: NvmlGpu) -> bool:
    programs = [f"process {one.pid}" for one in live.processes or ()]
    return bool(held_by(function.driver, function.uses, programs))
