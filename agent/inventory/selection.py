"""The GPUs of a look, held against what the configuration says is ours. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from agent.model.gpu import KnownGpu
from agent.model.gpu_models import part_of
from agent.model.gpu_selection import GpuFacts, GpuSelection, selection_faults
from agent.model.ids import Bdf
from agent.model.inventory import InventoryProblem
from agent.model.pci import PciFunction, PciKind


def facts_of(
    functions: Iterable[PciFunction], rows: Mapping[Bdf, KnownGpu]
) -> tuple[GpuFacts, ...]:
    """What each GPU may be named by; `rows`: what is remembered of those that are present."""
    return tuple(_facts(one, rows.get(one.bdf)) for one in functions if one.kind is PciKind.GPU)


def _facts(function: PciFunction, row: KnownGpu | None) -> GpuFacts:
    names = (part_of(function.device).name, row.name if row else None)
    return GpuFacts(
        bdf=function.bdf,
        uuid=row.uuid if row else None,
        slot=function.slot,
        names=tuple(name for name in names if name is not None),
        device=function.device,
        display=function.display,
    )


def selection_problems(
    selection: GpuSelection, facts: Iterable[GpuFacts]
) -> tuple[InventoryProblem, ...]:
    """Words of the configuration that name nothing here: a typing error leaves a GPU unguarded."""
    return tuple(
        InventoryProblem(
            key=f"gpu_unknown_name:{setting}",
            code="gpu_unknown_name",
            severity="warning",
            detail=f"{setting} names what no GPU here is: {words}",
            mend=f"correct {setting}: enclave-agent gpus lists addresses and names",
        )
        for setting, words in selection_faults(selection, facts).items()
    )
