"""Handlers of the inventory, and its values as views."""

from __future__ import annotations

import re

import msgspec

from agent.api.body import shown
from agent.api.problems import HttpError
from agent.api.reply import Reply, json_reply
from agent.api.route import Call
from agent.inventory.port import UnknownGpuError
from agent.model.clock import Instant, within
from agent.model.gpu import RESETS_AN_HOUR, Gpu, GpuUpkeep, Quarantine
from agent.model.ids import Bdf
from agent.model.inventory import Inventory
from agent.updates.admission.audit import sign
from agent.wire import gpu_views as v
from agent.wire.text import BDF_PATTERN

_HOUR_S = 3600.0
_BDF = re.compile(BDF_PATTERN)
_SAME = (
    *("bdf", "uuid", "serial", "module_id", "name", "architecture", "memory_mib", "numa_node"),
    *("iommu_group", "driver", "responds", "ecc", "remapped_rows", "temperature_c", "power_w"),
    *("utilization_percent", "nvlink", "fabric", "mig", "guest", "owner"),
)


async def inventory(call: Call) -> Reply:
    """As published; what the host has is asked of nobody here."""
    found = call.surface.engine.snapshot.inventory
    if found is None:
        raise HttpError(503, "starting", "The agent has not looked at the host yet; ask again.")
    return json_reply(inventory_view(found))


async def release(call: Call) -> Reply:
    """Lift a quarantine."""
    caller = call.caller
    gpu = await call.surface.engine.gpus.release(
        _named(call), caller.name, lambda tx, draft: sign(tx, draft, caller)
    )
    return json_reply(gpu_view(gpu, _looked_at(call)))


async def recover(call: Call) -> Reply:
    """Take a broken one off the bus and find it again. Answers when that is over."""
    bdf, caller, engine = _named(call), call.caller, call.surface.engine
    _known(call, bdf)
    await engine.preparation.recover(bdf, lambda tx, draft: sign(tx, draft, caller))
    await engine.gpus.refresh()
    gpu = _known(call, bdf)
    return json_reply(gpu_view(gpu, _looked_at(call)))


def _named(call: Call) -> Bdf:
    text = call.names["bdf"].lower()
    if not _BDF.fullmatch(text):
        raise UnknownGpuError(shown(text))
    return Bdf(text)


def _known(call: Call, bdf: Bdf) -> Gpu:
    found = call.surface.engine.gpus.inventory
    gpu = found.gpu(bdf) if found else None
    if gpu is None:
        raise UnknownGpuError(bdf)
    return gpu


def _looked_at(call: Call) -> Instant | None:
    found = call.surface.engine.gpus.inventory
    return found.observed_at if found else None


def inventory_view(found: Inventory) -> v.InventoryView:
    host = msgspec.to_builtins(found.host)
    return v.InventoryView(
        gpus=[gpu_view(gpu, found.observed_at) for gpu in found.gpus],
        switches=[gpu_view(gpu, found.observed_at) for gpu in found.switches],
        host=msgspec.convert({**host, "nvidia_driver": found.nvml_driver}, v.HostInventoryView),
        observed_at=found.observed_at.wall,
        complete=found.complete,
    )


def gpu_view(gpu: Gpu, now: Instant | None) -> v.GpuView:
    bars = None if gpu.bars is None else sum(bar.size_bytes for bar in gpu.bars) >> 20
    return v.GpuView(
        **{name: getattr(gpu, name) for name in _SAME},
        device_id=None if gpu.device is None else f"{gpu.device:04x}",
        group=[
            v.GroupMemberView(bdf=one.bdf, kind=one.kind, driver=one.driver) for one in gpu.group
        ],
        bar_mib=bars,
        reset_methods=None if gpu.reset_methods is None else list(gpu.reset_methods),
        cc_mode=v.CcModeView(active=gpu.cc_mode.active, pending=gpu.cc_mode.pending),
        link=msgspec.convert(gpu.link, v.LinkView, from_attributes=True),
        aer=msgspec.convert(gpu.aer, v.AerView, from_attributes=True),
        processes=None
        if gpu.processes is None
        else [msgspec.to_builtins(one) for one in gpu.processes],
        state=gpu.state,
        health=v.GpuHealthView(
            severity=gpu.health.severity,
            action=gpu.health.action,
            reasons=[
                v.GpuReasonView(code=one.code, detail=one.detail, since=one.since)
                for one in gpu.health.reasons
            ],
        ),
        quarantine=_quarantine_view(gpu.quarantine, now),
        upkeep=_upkeep_view(gpu.upkeep, now),
        left_alone=gpu.left_alone,
        seen_by=[str(one) for one in gpu.seen_by],
    )


def _upkeep_view(upkeep: GpuUpkeep, now: Instant | None) -> v.GpuUpkeepView:
    return v.GpuUpkeepView(
        fault=upkeep.fault,
        mend=upkeep.mend,
        mode_told=upkeep.mode_told,
        limits=[
            v.ModeLimitView(mode=one.mode, code=one.code, detail=one.detail, mend=one.mend)
            for one in upkeep.limits
        ],
        resets=len(within(upkeep.resets, _HOUR_S, now)) if now else 0,
        resets_allowed=RESETS_AN_HOUR,
    )


def _quarantine_view(put: Quarantine | None, now: Instant | None) -> v.QuarantineView | None:
    if put is None:
        return None
    since = put.since.shown(now) if now else put.since.wall
    return v.QuarantineView(reason=put.reason, since=since, actor=put.actor)
