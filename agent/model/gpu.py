"""GPUs and switches as everybody reads them: PCI, NVML and the store's memory merged.

None means not known, never zero. Nothing here says how a value was found: that is the inventory's.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec

from agent.model.clock import Instant
from agent.model.ids import Bdf
from agent.model.pci import Aer, Bar, GroupMember, Link

RESETS_AN_HOUR = 20  # of one device; what needs more is left alone
HOST = "host"  # the owner of a GPU that a driver of the host's or a process of it uses


class GpuState(StrEnum):
    """What may be done with a GPU. Only a `FREE` one is handed out."""

    FREE = "free"
    IN_USE = "in_use"
    PREPARING = "preparing"
    DIRTY = "dirty"
    UNHEALTHY = "unhealthy"
    QUARANTINED = "quarantined"
    ABSENT = "absent"


class CcMode(StrEnum):
    """The confidential-compute mode of a GPU, which is one for its whole board."""

    OFF = "off"
    ON = "on"
    DEVTOOLS = "devtools"
    PPCIE = "ppcie"


class CcModes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The mode that is in force, and the one after the next reset."""

    active: CcMode | None = None
    pending: CcMode | None = None


class ModeLimit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A mode that a device was found unable to be brought to, and what would mend that."""

    mode: CcMode
    code: str
    detail: str
    mend: str


class GpuUpkeep(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the agent's work on a device goes.

    `fault`, `mend`: why it is not made ready, and what helps. `mode_told`: what the operator's
    tool says where that is no mode. `limits`: modes that it cannot be brought to. `resets`: when
    it was reset of late.
    """

    fault: str | None = None
    mend: str | None = None
    mode_told: str | None = None
    limits: tuple[ModeLimit, ...] = ()
    resets: tuple[Instant, ...] = ()


class Severity(StrEnum):
    """How bad. `ERROR`: not to be handed out. In order."""

    OK = "ok"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class HealthAction(StrEnum):
    """What a person or the agent should do about a GPU. In order of weight."""

    NONE = "none"
    WATCH = "watch"
    RESET = "reset"
    REBOOT = "reboot"
    RETURN = "return"


class GpuReason(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One thing that is wrong. `since` is when it was first seen, RFC 3339 UTC."""

    code: str
    detail: str
    since: str


class GpuHealth(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The worst of the reasons, and the weightiest of their actions."""

    severity: Severity = Severity.OK
    action: HealthAction = HealthAction.NONE
    reasons: tuple[GpuReason, ...] = ()


class Sight(StrEnum):
    """Who shows a GPU now."""

    PCI = "pci"
    NVML = "nvml"


class Quarantine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Why a GPU is kept out of use until a person lifts it."""

    reason: str
    since: Instant
    actor: str = "agent"


class KnownGpu(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is remembered of a GPU: learned when NVML last saw it, kept for when it cannot.

    `key`: its UUID once NVML has seen it, until then `at:` and its location. `location` and `bdf`
    say where it was last; None when another GPU is there now. `present`: at the last look.
    """

    key: str
    bdf: Bdf | None
    location: str | None
    device: int | None = None
    is_switch: bool = False
    uuid: str | None = None
    serial: str | None = None
    module_id: int | None = None
    name: str | None = None
    architecture: str | None = None
    memory_mib: int | None = None
    learned_at: Instant | None = None
    present: bool = True
    quarantine: Quarantine | None = None


class GpuProcess(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A process of the host that has the GPU open, as NVML tells."""

    pid: int
    memory_mib: int | None = None


class Gpu(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One GPU or NVSwitch (`is_switch`).

    `owner`: `host`, an enclave's id, or None. `group`: all functions of its IOMMU group. A GPU
    that is `absent` keeps what is remembered of it. `module_id` is NVML's, which a fabric manager
    numbers by; it is not the PCI order. `guest`: what the guest that owns it says of all its GPUs
    together: utilization_percent, memory_used_gib, memory_total_gib. `clean`: as recorded
    of it (`model.preparation.is_clean`). `left_alone`: why the agent takes nothing of it, though
    nobody owns it.
    """

    bdf: Bdf
    is_switch: bool = False
    uuid: str | None = None
    serial: str | None = None
    module_id: int | None = None
    name: str | None = None
    architecture: str | None = None
    memory_mib: int | None = None
    device: int | None = None
    numa_node: int | None = None
    iommu_group: int | None = None
    group: tuple[GroupMember, ...] = ()
    bars: tuple[Bar, ...] | None = None
    reset_methods: tuple[str, ...] | None = None
    can_reset: bool = False
    driver: str | None = None
    vfio_device: str | None = None
    cc_mode: CcModes = CcModes()
    link: Link = Link()
    aer: Aer = Aer()
    responds: bool | None = None
    ecc: dict[str, Any] | None = None
    remapped_rows: dict[str, Any] | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    utilization_percent: float | None = None
    tensor_percent: float | None = None
    memory_used_mib: int | None = None
    sm_clock_mhz: int | None = None
    nvlink: dict[str, Any] | None = None
    fabric: dict[str, Any] | None = None
    mig: bool | None = None
    processes: tuple[GpuProcess, ...] | None = None
    guest: dict[str, float] | None = None
    owner: str | None = None
    clean: bool = False
    state: GpuState = GpuState.DIRTY
    health: GpuHealth = GpuHealth()
    quarantine: Quarantine | None = None
    upkeep: GpuUpkeep = GpuUpkeep()
    left_alone: str | None = None
    seen_by: tuple[Sight, ...] = ()


class GpuUse(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the agent itself says of a GPU: who has it, and how far its preparation is.

    `clean`: reset and requalified since its last enclave. `cc_mode`: as the operator's tool said.
    """

    owner: str | None = None
    preparing: bool = False
    clean: bool = True
    cc_mode: CcModes | None = None
    upkeep: GpuUpkeep = GpuUpkeep()


UNUSED = GpuUse()
