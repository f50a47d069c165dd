"""What a host has, as published: its GPUs and switches, and the host itself."""

from __future__ import annotations

import msgspec

from agent.model.clock import Instant
from agent.model.gpu import Gpu, GpuHealth
from agent.model.ids import Bdf


class _Value(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the values."""


class NumaNode(_Value, frozen=True, kw_only=True):
    """One node. `distances`: the kernel's row for it, in the order of the nodes."""

    node: int
    memory_mib: int | None = None
    cpus: str | None = None
    distances: tuple[int, ...] = ()


class Hugepages(_Value, frozen=True, kw_only=True):
    """Pages of one size that were set aside."""

    size_kib: int
    total: int | None = None
    free: int | None = None


class TeeIds(_Value, frozen=True, kw_only=True):
    """Ids that the processor has for confidential guests. None: the kernel does not say."""

    kind: str
    total: int | None = None
    used: int | None = None


class HostInventory(_Value, frozen=True, kw_only=True):
    """The host. A switch that this kernel does not have is None, one that is off False.

    `iommu_groups`: how many there are; 0: no IOMMU is in use. `iommufd`, `kvm`, `sev`: whether
    their devices are there. `vfio_nodes`: whether the kernel makes a file for each vfio device;
    None as long as vfio is not loaded.
    """

    memory_mib: int | None = None
    mem_available_mib: int | None = None
    vcpus: int | None = None
    disk_free_mib: int | None = None
    numa_nodes: tuple[NumaNode, ...] = ()
    hugepages: tuple[Hugepages, ...] = ()
    tee_ids: tuple[TeeIds, ...] = ()
    sev_snp: bool | None = None
    tdx: bool | None = None
    kvm: bool = False
    sev: bool = False
    iommufd: bool = False
    vfio_nodes: bool | None = None
    iommu_groups: int = 0


class InventoryProblem(_Value, frozen=True, kw_only=True):
    """Something that a person should mend. `key` is the same for as long as it is the same."""

    key: str
    code: str
    severity: str
    detail: str
    mend: str


class Inventory(_Value, frozen=True, kw_only=True):
    """All of it, as of one moment.

    `complete`: the bus could be read, and NVML was asked if it has GPUs to show. That it did not
    answer is a problem and no lack: the bus tells what may be given away.
    """

    gpus: tuple[Gpu, ...] = ()
    switches: tuple[Gpu, ...] = ()
    host: HostInventory = HostInventory()
    nvml_driver: str | None = None
    problems: tuple[InventoryProblem, ...] = ()
    observed_at: Instant
    complete: bool

    def gpu(self, bdf: Bdf) -> Gpu | None:
        """The GPU or switch of that BDF."""
        return next((one for one in (*self.gpus, *self.switches) if one.bdf == bdf), None)

    def with_health(self, bdf: Bdf, health: GpuHealth) -> Inventory:
        """The same, but for the health of one."""

        def put(gpus: tuple[Gpu, ...]) -> tuple[Gpu, ...]:
            return tuple(
                msgspec.structs.replace(one, health=health) if one.bdf == bdf else one
                for one in gpus
            )

        return msgspec.structs.replace(self, gpus=put(self.gpus), switches=put(self.switches))
