"""How busy a GPU's tensor cores are, by its performance monitoring (GPM).

Source: nvml.h, GPM: Hopper and newer. A value is the mean between two samples, so that a GPU's
first look has none. Runs only in the NVML process: a call may never return.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import pynvml

from agent.inventory.nvml.calls import call

_APART_S = 1.0  # samples closer than that say nothing, and cost the same


class TensorMeter:
    """Of one GPU, by its handle; it keeps two samples, which go with the process."""

    def __init__(self, handle: Any, clock: Callable[[], float] = time.monotonic) -> None:
        self._handle = handle
        self._clock = clock
        self._supported: bool | None = None
        self._newest: Any = None
        self._spare: Any = None
        self._taken_at = -math.inf
        self._percent: float | None = None

    def percent(self, codes: set[int]) -> float | None:
        """Of the time since the look before, 0 to 100; None where it cannot be told.

        What its calls were refused with is added to `codes`.
        """
        now = self._clock()
        if now - self._taken_at < _APART_S:
            return self._percent
        self._percent = None
        if self._can(codes) and (sample := self._sample(codes)) is not None:
            before, self._newest, self._taken_at = self._newest, sample, now
            self._spare = before
            self._percent = _between(before, sample, codes) if before is not None else None
        return self._percent

    def _can(self, codes: set[int]) -> bool:
        """Asked until it is answered: that does not change while the driver is loaded."""
        if self._supported is None:
            answer = call("nvmlGpmQueryDeviceSupport", self._handle, codes=codes)
            self._supported = None if answer is None else bool(answer.isSupportedDevice)
        return bool(self._supported)

    def _sample(self, codes: set[int]) -> Any:
        if self._spare is None:
            self._spare = call("nvmlGpmSampleAlloc", codes=codes)
        if self._spare is None:
            return None
        return call("nvmlGpmSampleGet", self._handle, self._spare, codes=codes)


def _between(before: Any, now: Any, codes: set[int]) -> float | None:
    asked = pynvml.c_nvmlGpmMetricsGet_t()
    asked.version = pynvml.NVML_GPM_METRICS_GET_VERSION
    asked.numMetrics = 1
    asked.sample1, asked.sample2 = before, now
    asked.metrics[0].metricId = pynvml.NVML_GPM_METRIC_ANY_TENSOR_UTIL
    if call("nvmlGpmMetricsGet", asked, codes=codes) is None:
        return None
    told = asked.metrics[0]
    if told.nvmlReturn != pynvml.NVML_SUCCESS or not 0 <= told.value <= 100:
        return None  # not a number is no number between them
    return float(told.value)
