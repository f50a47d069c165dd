"""What NVML says, as values. Every field is optional: a driver may be older, a call may fail."""

from __future__ import annotations

from typing import Any

import msgspec

from agent.model.gpu import CcMode, GpuProcess
from agent.model.ids import Bdf


class _Value(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the values."""


class NvmlGpu(_Value, frozen=True, kw_only=True):
    """One GPU, at one look.

    `lost`: the driver says that it fell off the bus. `reset_required`: it says so. `mute`: the
    error of the calls, where none of those that read the GPU itself is answered. `recovery`:
    field 230, a number that newer drivers may add to. `ecc`: {enabled, volatile: {corrected,
    uncorrected}, aggregate: {…}, sram_threshold_exceeded, retired_pages_pending}.
    `memory_used_mib`: what the driver keeps for itself is used, too. `tensor_percent`: how busy
    the tensor cores were since the look before.
    `remapped_rows`: {correctable, uncorrectable, pending, failure}. `mig`: on or off.
    """

    bdf: Bdf
    uuid: str | None = None
    serial: str | None = None
    module_id: int | None = None
    name: str | None = None
    architecture: str | None = None
    memory_mib: int | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    utilization_percent: float | None = None
    tensor_percent: float | None = None
    memory_used_mib: int | None = None
    sm_clock_mhz: int | None = None
    ecc: dict[str, Any] | None = None
    remapped_rows: dict[str, Any] | None = None
    nvlink: dict[str, Any] | None = None
    fabric: dict[str, Any] | None = None
    processes: tuple[GpuProcess, ...] | None = None
    clocks_event_reasons: int | None = None
    mig: bool | None = None
    recovery: int | None = None
    lost: bool = False
    reset_required: bool = False
    mute: int | None = None


class NvmlEvent(_Value, frozen=True, kw_only=True):
    """Something that the driver told by itself. `kind`: xid, unavailable, recovery_action.

    `data`: the XID's number, or the driver's own code. `bdf` None: it did not say of which GPU.
    """

    kind: str
    bdf: Bdf | None
    data: int


class Trouble(_Value, frozen=True, kw_only=True):
    """Why NVML says nothing. `expected`: it was sent away by us, and nothing is wrong."""

    code: str
    detail: str
    expected: bool = False


class NvmlSilence(_Value, frozen=True, kw_only=True):
    """A GPU that NVML tells nothing of. `error`: its refusal; None if a call about it hung."""

    bdf: Bdf
    error: int | None = None


class NvmlLook(_Value, frozen=True, kw_only=True):
    """All of it. With `trouble` there are no GPUs. `cc_mode` is one for all that NVML sees.

    `silent`: those that it was asked about in vain, now or a moment ago.
    """

    gpus: tuple[NvmlGpu, ...] = ()
    silent: tuple[NvmlSilence, ...] = ()
    driver_version: str | None = None
    cc_mode: CcMode | None = None
    trouble: Trouble | None = None
