"""The inventory of GPUs, joined to what it looks at; and who prepares them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agent.config import Config
from agent.host.clock import Clock
from agent.host.commands import RunCommand, run_command
from agent.host.kernel_log import KernelLog
from agent.host.units import borrow, borrow_here, with_all_capabilities
from agent.inventory.nvml.probe import NvmlProbe
from agent.inventory.pci import PciReader
from agent.inventory.platform import PlatformProbe
from agent.inventory.port import Gpus
from agent.inventory.preparation.card_identity import read_space, space_by
from agent.inventory.preparation.device_ops import DeviceOps
from agent.inventory.preparation.modes import ModeTool
from agent.inventory.preparation.observers import Observers
from agent.inventory.preparation.places import places_of
from agent.inventory.preparation.preparer import Preparer
from agent.inventory.preparation.records import DevicePlace
from agent.inventory.preparation.recovery import Recovery
from agent.inventory.watch import InventoryWatch
from agent.model.gpu_selection import GpuSelection
from agent.model.ids import Bdf, EnclaveId
from agent.model.inventory import Inventory
from agent.probes.port import Probes
from agent.store.port import Store
from agent.updates.admission.gpus import gpu_uses


def gpus_of(
    config: Config, clock: Clock, store: Store, probes: Probes, *, in_units: bool
) -> InventoryWatch:
    """Nothing is started. What a guest says of its own GPUs comes from its probes."""

    def said(enclave_id: EnclaveId) -> Mapping[str, Any] | None:
        view = probes.view(enclave_id)
        return view.metrics if view else None

    host = config.host
    return InventoryWatch(
        store,
        clock,
        pci=PciReader(host.sysfs_root),
        platform=PlatformProbe(
            disk=config.state_dir,
            sysfs_root=host.sysfs_root,
            cgroup_root=host.cgroup_root,
            vcpus=host.vcpus,
        ),
        nvml=lambda hear: NvmlProbe(host.nvml_library, clock, on_event=hear),
        interval_s=config.inventory.interval_s,
        guest_metrics=said,
        uses=gpu_uses,
        kernel=lambda hear: KernelLog(hear, borrow=borrow if in_units else None),
        selection=GpuSelection(include=config.gpus.include, exclude=config.gpus.exclude),
    )


class _Places:
    """The places of the inventory's devices, worked out once for each that is published."""

    def __init__(self, gpus: Gpus) -> None:
        self._gpus = gpus
        self._of: Inventory | None = None
        self._places: Mapping[Bdf, DevicePlace] = {}

    def now(self) -> Mapping[Bdf, DevicePlace]:
        inventory = self._gpus.inventory
        if inventory is not self._of:
            every = (*inventory.gpus, *inventory.switches) if inventory else ()
            self._of, self._places = inventory, places_of(every)
        return self._places


def preparer_of(
    config: Config,
    clock: Clock,
    store: Store,
    gpus: Gpus,
    *,
    confidential: bool,
    in_units: bool = False,
    run: RunCommand = run_command,
) -> Preparer:
    """Who prepares GPUs. Without confidential computing their mode is nobody's concern.

    `run`: through which everything is done to devices. `in_units`: what takes CAP_SYS_ADMIN (most
    of a configuration space) is done by units, since ours has not got it.
    """
    places = _Places(gpus)
    modes = with_all_capabilities(run) if in_units else run
    space = space_by(borrow_here) if in_units else read_space

    def gives_display(bdf: Bdf) -> bool:
        """Whether the configuration names it all the same."""
        gpu = gpus.inventory.gpu(bdf) if gpus.inventory else None
        return gpu is not None and gpu.left_alone is None

    async def quarantine(bdf: Bdf, reason: str) -> None:
        await gpus.quarantine(bdf, reason, "agent")

    return Preparer(
        store,
        clock,
        DeviceOps(config.host.sysfs_root, gives_display=gives_display, run=run),
        ModeTool(config.host.gpu_tools, run=modes) if confidential else None,
        present=places.now,
        place_of=lambda bdf: places.now().get(bdf),
        quarantine=quarantine,
        released=gpus.released,
        was_reset=gpus.was_reset,
        recovery=Recovery(
            store,
            clock,
            config.host.sysfs_root,
            expecting=gpus.expecting,
            run=run,
            read_space=space,
        ),
        observers=Observers(store, config.gpus.stop_units, run=run),
    )
