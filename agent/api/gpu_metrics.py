"""GPUs as Prometheus gauges, by the names and labels that DCGM's exporter has where it has one.

So that dashboards made for that exporter tell GPUs apart and sum them right, also on a host whose
GPUs are given away: what only the host's driver could tell is absent then, never zero. Those
dashboards find hosts and GPUs by the temperatures. So a GPU of which something else is known has
one that is no number (NaN), which no panel draws.
"""

from __future__ import annotations

import math
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from agent.model.gpu import Gpu, GpuState, Severity
from agent.model.inventory import Inventory

_DCGM = ("gpu", "UUID", "pci_bus_id", "modelName", "Hostname")
_GIB_MIB = 1024


@dataclass(frozen=True, slots=True)
class _Seen:
    """A GPU at its place. `index`: among the host's GPUs by the bus, absent ones counted, which is
    the driver's own number where that has all of them. `of_owner`: how many its owner has.
    """

    gpu: Gpu
    index: int
    of_owner: int
    host: str

    @property
    def labels(self) -> list[str]:
        """As the exporter writes them: `00000000:18:00.0`."""
        domain, _, rest = self.gpu.bdf.partition(":")
        bus_id = f"{domain:0>8}:{rest}".upper()
        return [str(self.index), self.gpu.uuid or "", bus_id, self.gpu.name or "", self.host]


_Value = Callable[[Gpu], Any]


def _of(part: str, *names: str) -> _Value:
    """A number within one of a GPU's dictionaries."""

    def value(gpu: Gpu) -> Any:
        found = getattr(gpu, part)
        for name in names:
            found = found.get(name) if isinstance(found, dict) else None
        return found

    return value


def _guest(name: str) -> _Value:
    return lambda gpu: (gpu.guest or {}).get(name)


def _first(*values: _Value) -> _Value:
    return lambda gpu: next((v for v in (value(gpu) for value in values) if v is not None), None)


def _xid(gpu: Gpu) -> int | None:
    """The newest that the host's driver told, as long as it is remembered."""
    told = [reason for reason in gpu.health.reasons if reason.code.startswith("xid_")]
    newest = max(told, key=lambda reason: reason.since, default=None)
    return None if newest is None else int(newest.code.removeprefix("xid_"))


_utilization = _first(lambda gpu: gpu.utilization_percent, _guest("utilization_percent"))


def _tensor(gpu: Gpu) -> float | None:
    return None if gpu.tensor_percent is None else gpu.tensor_percent / 100


_VALUES: tuple[tuple[str, str, _Value], ...] = (
    ("DEV_POWER_USAGE", "Power draw (W).", lambda gpu: gpu.power_w),
    (
        "DEV_GPU_UTIL",
        "Utilization (%); where a guest owns it the mean of all that has, as it says.",
        _utilization,
    ),
    ("PROF_PIPE_TENSOR_ACTIVE", "Share of the time in which the tensor cores worked.", _tensor),
    ("DEV_FB_TOTAL", "Memory (MiB).", lambda gpu: gpu.memory_mib),
    ("DEV_SM_CLOCK", "Clock of the multiprocessors (MHz).", lambda gpu: gpu.sm_clock_mhz),
    ("DEV_ECC_SBE_VOL_TOTAL", "Corrected errors.", _of("ecc", "volatile", "corrected")),
    ("DEV_ECC_DBE_VOL_TOTAL", "Uncorrected errors.", _of("ecc", "volatile", "uncorrected")),
    ("DEV_ECC_SBE_AGG_TOTAL", "Corrected, over its life.", _of("ecc", "aggregate", "corrected")),
    (
        "DEV_ECC_DBE_AGG_TOTAL",
        "Uncorrected, over its life.",
        _of("ecc", "aggregate", "uncorrected"),
    ),
    ("DEV_CORRECTABLE_REMAPPED_ROWS", "Rows.", _of("remapped_rows", "correctable")),
    ("DEV_UNCORRECTABLE_REMAPPED_ROWS", "Rows.", _of("remapped_rows", "uncorrectable")),
    ("DEV_ROW_REMAP_PENDING", "1: remapped at the next reset.", _of("remapped_rows", "pending")),
    ("DEV_ROW_REMAP_FAILURE", "1: could not be remapped.", _of("remapped_rows", "failure")),
    ("DEV_XID_ERRORS", "The newest XID that is remembered.", _xid),
    ("DEV_PCIE_LINK_WIDTH", "Lanes.", lambda gpu: gpu.link.width),
    ("DEV_PCIE_MAX_LINK_WIDTH", "Lanes at best.", lambda gpu: gpu.link.max_width),
)


def gpu_metrics(inventory: Inventory | None) -> Iterator[Metric]:
    """Nothing before the first look; of switches, state and errors only."""
    if inventory is None:
        return
    seen = _at_their_places(inventory.gpus)
    text = "Temperature (C); not a number where it cannot be had."
    yield from _dcgm("DEV_GPU_TEMP", text, ((one, _temperature(one)) for one in seen))
    for name, text, value in _VALUES:
        yield from _dcgm(name, text, ((one, value(one.gpu)) for one in seen))
    text = "Memory used (MiB); where a guest owns it its share of what that says it uses."
    yield from _dcgm("DEV_FB_USED", text, ((one, _memory_used(one)) for one in seen))
    every = (*inventory.gpus, *inventory.switches)
    yield from _own(every)
    yield from _errors(every)


def _at_their_places(gpus: tuple[Gpu, ...]) -> list[_Seen]:
    owners, host = Counter(gpu.owner for gpu in gpus), socket.gethostname()
    by_bus = enumerate(sorted(gpus, key=lambda gpu: gpu.bdf))
    return [_Seen(gpu, index, owners[gpu.owner], host) for index, gpu in by_bus]


def _temperature(one: _Seen) -> float | None:
    if one.gpu.temperature_c is not None:
        return one.gpu.temperature_c
    told = _utilization(one.gpu) is not None or _memory_used(one) is not None
    return math.nan if told else None


def _memory_used(one: _Seen) -> float | None:
    """MiB. A guest tells of all its GPUs together: each has its share, and the sum is right."""
    if one.gpu.memory_used_mib is not None:
        return one.gpu.memory_used_mib
    told_gib = (one.gpu.guest or {}).get("memory_used_gib")
    return None if told_gib is None else told_gib * _GIB_MIB / one.of_owner


def _dcgm(name: str, text: str, values: Iterable[tuple[_Seen, Any]]) -> Iterator[Metric]:
    """Nothing if no GPU has a value."""
    gauge = GaugeMetricFamily(f"DCGM_FI_{name}", text, labels=_DCGM)
    for one, value in values:
        _add(gauge, one.labels, value)
    if gauge.samples:
        yield gauge


def _own(every: tuple[Gpu, ...]) -> Iterator[Metric]:
    state = _gauge("state", "1 at its state, else 0.", "gpu", "state")
    health = _gauge("health", "1 at its severity, else 0.", "gpu", "severity")
    seen = _gauge("seen_by_nvml", "1 where NVML shows it.", "gpu")
    for gpu in every:
        for each in GpuState:
            state.add_metric([gpu.bdf, each], float(gpu.state is each))
        for severity in Severity:
            health.add_metric([gpu.bdf, severity], float(gpu.health.severity is severity))
        seen.add_metric([gpu.bdf], float("nvml" in gpu.seen_by))
    yield from (state, health, seen)


def _errors(every: tuple[Gpu, ...]) -> Iterator[Metric]:
    name = "enclave_agent_gpu_pcie_errors"
    errors = CounterMetricFamily(name, "As the kernel counts them.", labels=("gpu", "severity"))
    for gpu in every:
        for kind in gpu.aer.__struct_fields__:
            _add(errors, [gpu.bdf, kind], getattr(gpu.aer, kind))
    yield errors


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"enclave_agent_gpu_{name}", text, labels=labels)


def _add(metric: GaugeMetricFamily | CounterMetricFamily, labels: list[str], value: Any) -> None:
    if isinstance(value, int | float):
        metric.add_metric(labels, float(value))
