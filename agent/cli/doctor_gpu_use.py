"""The doctor's lines about who uses GPUs, and which the agent leaves alone, and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from agent.cli.doctor_line import Line

if TYPE_CHECKING:
    from agent.config import Config
    from agent.inventory.nvml.values import NvmlLook
    from agent.model.gpu import KnownGpu
    from agent.model.ids import Bdf
    from agent.model.pci import PciFunction


def use_lines(
    config: Config, gpus: list[PciFunction], look: NvmlLook | None, proc_root: Path = Path("/proc")
) -> Iterator[Line]:
    """What is left alone, what settings name nothing, and who holds what vfio does not have."""
    from agent.inventory.selection import facts_of
    from agent.model.gpu_selection import GpuSelection, left_alone, selection_faults

    selection = GpuSelection(include=config.gpus.include, exclude=config.gpus.exclude)
    facts = facts_of(gpus, _seen(look))
    left = left_alone(selection, facts)
    for setting, words in selection_faults(selection, facts).items():
        yield Line(
            setting,
            "warn",
            f"names what no GPU here is: {words}",
            "enclave-agent gpus lists addresses and names; UUIDs are known once NVML saw them",
        )
    for gpu in gpus:
        if gpu.bdf in left:
            yield Line(f"gpu {gpu.bdf} use", "ok", f"left alone: {left[gpu.bdf]}")
        else:
            yield from _holders(config, gpu, proc_root)


def _seen(look: NvmlLook | None) -> Mapping[Bdf, KnownGpu]:
    from agent.model.gpu import KnownGpu

    return {
        one.bdf: KnownGpu(
            key=one.uuid or "", bdf=one.bdf, location=None, uuid=one.uuid, name=one.name
        )
        for one in (look.gpus if look else ())
    }


def _holders(config: Config, gpu: PciFunction, proc_root: Path) -> Iterator[Line]:
    """Of what a guest has, its QEMU is the holder, and nothing is wrong with that."""
    from agent.inventory.preparation.functions import look
    from agent.inventory.preparation.holders import find_holders
    from agent.model.pci_drivers import is_kept_for_guests

    one = None if is_kept_for_guests(gpu.driver) else look(config.host.sysfs_root, gpu.bdf)
    holders = [
        holder
        for holder in (find_holders([one], proc_root) if one else ())
        if not _is_our_nvml(proc_root, holder.pid)
    ]
    if not holders:
        return
    lasting = [holder for holder in holders if holder.unit not in config.gpus.stop_units]
    detail = f"held by {', '.join(map(str, holders))}"
    if lasting:
        mend = "; ".join(dict.fromkeys(holder.mend for holder in lasting))
        yield Line(f"gpu {gpu.bdf} use", "warn", detail, mend)
    else:
        yield Line(f"gpu {gpu.bdf} use", "ok", f"{detail}: stopped while it is prepared")


def _is_our_nvml(proc_root: Path, pid: int) -> bool:
    """Whether it is the agent's own look at GPUs, which goes away for a preparation."""
    from agent.inventory.sysfs import read_bytes

    return b"agent.inventory.nvml.child" in (read_bytes(proc_root / str(pid) / "cmdline") or b"")
