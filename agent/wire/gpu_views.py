"""What the agent answers about GPUs, switches and the host that they are in. null: not known."""

from __future__ import annotations

import datetime as dt
from typing import Any

from msgspec import Struct


class _View(Struct, frozen=True, kw_only=True):
    """Base of the views."""


class CcModeView(_View, frozen=True, kw_only=True):
    """The mode that a GPU is in, and the one after its next reset."""

    active: str | None
    pending: str | None


class LinkView(_View, frozen=True, kw_only=True):
    """The PCIe link, as trained and at best."""

    speed_gts: float | None
    width: int | None
    max_speed_gts: float | None
    max_width: int | None


class AerView(_View, frozen=True, kw_only=True):
    """PCIe errors that the kernel has counted since boot."""

    correctable: int | None
    nonfatal: int | None
    fatal: int | None


class GpuReasonView(_View, frozen=True, kw_only=True):
    """One reason of a GPU's health."""

    code: str
    detail: str
    since: str


class GpuHealthView(_View, frozen=True, kw_only=True):
    """A GPU's health and what to do about it.

    severity: ok, info, warning, error. action: none, watch, reset, reboot, return.
    """

    severity: str
    action: str
    reasons: list[GpuReasonView]


class QuarantineView(_View, frozen=True, kw_only=True):
    """Why a GPU is kept out of use, since when, and who said so."""

    reason: str
    since: dt.datetime
    actor: str


class ModeLimitView(_View, frozen=True, kw_only=True):
    """A mode that a device was found unable to be brought to."""

    mode: str
    code: str
    detail: str
    mend: str


class GpuUpkeepView(_View, frozen=True, kw_only=True):
    """How the agent's work on a device goes: why it is not made ready and what helps; what the
    operator's tool says where that is no mode; the modes it is not given out in; its resets of the
    last hour, and how many there may be.
    """

    fault: str | None
    mend: str | None
    mode_told: str | None
    limits: list[ModeLimitView]
    resets: int
    resets_allowed: int


class GroupMemberView(_View, frozen=True, kw_only=True):
    """One function of an IOMMU group."""

    bdf: str
    kind: str
    driver: str | None


class GpuView(_View, frozen=True, kw_only=True):
    """One GPU or NVSwitch, PCI's and NVML's accounts merged."""

    bdf: str
    uuid: str | None
    serial: str | None
    module_id: int | None
    name: str | None
    architecture: str | None
    memory_mib: int | None
    device_id: str | None
    numa_node: int | None
    iommu_group: int | None
    group: list[GroupMemberView]
    bar_mib: int | None
    reset_methods: list[str] | None
    driver: str | None
    cc_mode: CcModeView
    link: LinkView
    aer: AerView
    responds: bool | None
    ecc: dict[str, Any] | None
    remapped_rows: dict[str, Any] | None
    temperature_c: float | None
    power_w: float | None
    utilization_percent: float | None
    nvlink: dict[str, Any] | None
    fabric: dict[str, Any] | None
    mig: bool | None
    processes: list[dict[str, Any]] | None
    guest: dict[str, float] | None
    owner: str | None
    state: str
    health: GpuHealthView
    quarantine: QuarantineView | None
    upkeep: GpuUpkeepView
    left_alone: str | None
    seen_by: list[str]


class NumaNodeView(_View, frozen=True, kw_only=True):
    """One NUMA node."""

    node: int
    memory_mib: int | None
    cpus: str | None
    distances: list[int]


class HugepagesView(_View, frozen=True, kw_only=True):
    """Huge pages of one size."""

    size_kib: int
    total: int | None
    free: int | None


class TeeIdsView(_View, frozen=True, kw_only=True):
    """Ids that the processor has for confidential guests of one kind."""

    kind: str
    total: int | None
    used: int | None


class HostInventoryView(_View, frozen=True, kw_only=True):
    """The host around its GPUs. iommu_groups 0: no IOMMU is in use."""

    memory_mib: int | None
    mem_available_mib: int | None
    vcpus: int | None
    disk_free_mib: int | None
    numa_nodes: list[NumaNodeView]
    hugepages: list[HugepagesView]
    tee_ids: list[TeeIdsView]
    sev_snp: bool | None
    tdx: bool | None
    kvm: bool
    sev: bool
    iommufd: bool
    iommu_groups: int
    nvidia_driver: str | None


class InventoryView(_View, frozen=True, kw_only=True):
    """What the host has."""

    gpus: list[GpuView]
    switches: list[GpuView]
    host: HostInventoryView
    observed_at: dt.datetime
    complete: bool
