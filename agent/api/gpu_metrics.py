"""GPUs as Prometheus gauges, by the names that DCGM's exporter has where it has one.

A dashboard made for that exporter works on a host whose GPUs are given away: what only the host's
driver could tell is absent then, never zero. `UUID`, `pci_bus_id` and `modelName` are its labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from agent.model.gpu import Gpu, GpuState, Severity
from agent.model.inventory import Inventory

_DCGM = ("UUID", "pci_bus_id", "modelName")
_GIB_MIB = 1024

_Value = Callable[[Gpu], Any]


def _of(part: str, *names: str) -> _Value:
    """A number within one of a GPU's dictionaries."""

    def value(gpu: Gpu) -> Any:
        found = getattr(gpu, part)
        for name in names:
            found = found.get(name) if isinstance(found, dict) else None
        return found

    return value


def _guest(name: str, factor: float = 1) -> _Value:
    def value(gpu: Gpu) -> Any:
        said = (gpu.guest or {}).get(name)
        return None if said is None else said * factor

    return value


def _first(*values: _Value) -> _Value:
    return lambda gpu: next((v for v in (value(gpu) for value in values) if v is not None), None)


def _xid(gpu: Gpu) -> int | None:
    """The newest that the host's driver told, as long as it is remembered."""
    told = [reason for reason in gpu.health.reasons if reason.code.startswith("xid_")]
    newest = max(told, key=lambda reason: reason.since, default=None)
    return None if newest is None else int(newest.code.removeprefix("xid_"))


_VALUES: tuple[tuple[str, str, _Value], ...] = (
    ("GPU_TEMP", "Temperature (C).", lambda gpu: gpu.temperature_c),
    ("POWER_USAGE", "Power draw (W).", lambda gpu: gpu.power_w),
    (
        "GPU_UTIL",
        "Utilization (%); of all GPUs of the guest that owns it, as that says.",
        _first(lambda gpu: gpu.utilization_percent, _guest("utilization_percent")),
    ),
    ("FB_TOTAL", "Memory (MiB).", lambda gpu: gpu.memory_mib),
    (
        "FB_USED",
        "Memory used (MiB), of all GPUs of the guest that owns it, as that says.",
        _guest("memory_used_gib", _GIB_MIB),
    ),
    ("ECC_SBE_VOL_TOTAL", "Corrected errors.", _of("ecc", "volatile", "corrected")),
    ("ECC_DBE_VOL_TOTAL", "Uncorrected errors.", _of("ecc", "volatile", "uncorrected")),
    ("ECC_SBE_AGG_TOTAL", "Corrected, over its life.", _of("ecc", "aggregate", "corrected")),
    ("ECC_DBE_AGG_TOTAL", "Uncorrected, over its life.", _of("ecc", "aggregate", "uncorrected")),
    ("CORRECTABLE_REMAPPED_ROWS", "Rows.", _of("remapped_rows", "correctable")),
    ("UNCORRECTABLE_REMAPPED_ROWS", "Rows.", _of("remapped_rows", "uncorrectable")),
    ("ROW_REMAP_PENDING", "1: remapped at the next reset.", _of("remapped_rows", "pending")),
    ("ROW_REMAP_FAILURE", "1: could not be remapped.", _of("remapped_rows", "failure")),
    ("XID_ERRORS", "The newest XID that is remembered.", _xid),
    ("PCIE_LINK_WIDTH", "Lanes.", lambda gpu: gpu.link.width),
    ("PCIE_MAX_LINK_WIDTH", "Lanes at best.", lambda gpu: gpu.link.max_width),
)


def gpu_metrics(inventory: Inventory | None) -> Iterator[Metric]:
    """Nothing before the first look; of switches, state and errors only."""
    if inventory is None:
        return
    for name, text, value in _VALUES:
        gauge = GaugeMetricFamily(f"DCGM_FI_DEV_{name}", text, labels=_DCGM)
        for gpu in inventory.gpus:
            _add(gauge, _labels(gpu), value(gpu))
        if gauge.samples:
            yield gauge
    every = (*inventory.gpus, *inventory.switches)
    yield from _own(every)
    yield from _errors(every)


def _labels(gpu: Gpu) -> list[str]:
    """`00000000:18:00.0`, as the exporter writes it."""
    domain, _, rest = gpu.bdf.partition(":")
    return [gpu.uuid or "", f"{domain:0>8}:{rest}".upper(), gpu.name or ""]


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
