"""Everything that NVML says of one GPU. Runs only in the NVML process: a call may never return."""

from __future__ import annotations

import ctypes
from typing import Any

import msgspec
import pynvml

from agent.inventory.nvml.calls import call, text
from agent.inventory.nvml.tensor import TensorMeter
from agent.inventory.nvml.values import NvmlGpu
from agent.model.gpu import GpuProcess
from agent.model.ids import Bdf

_ARCHITECTURES = {
    5: "volta",
    6: "turing",
    7: "ampere",
    8: "ada",
    9: "hopper",
    10: "blackwell",
    13: "rubin",
}
_RECOVERY_FIELD = 230
_NVLINK_FIELDS = {38: "crc_flit", 45: "crc_data", 52: "replay", 59: "recovery"}
_NVLINKS = 18
_FABRIC_STATES = {0: "not_supported", 1: "not_started", 2: "in_progress", 3: "completed"}
# Errors that say that a GPU does not answer, and not that it has no such value.
_HARD = frozenset(
    {
        pynvml.NVML_ERROR_TIMEOUT,
        pynvml.NVML_ERROR_IRQ_ISSUE,
        pynvml.NVML_ERROR_OPERATING_SYSTEM,
        pynvml.NVML_ERROR_MEMORY,
        pynvml.NVML_ERROR_UNKNOWN,
    }
)
_NUMBERS = {0: "dVal", 1: "uiVal", 2: "ulVal", 3: "ullVal", 4: "sllVal", 5: "siVal", 6: "usVal"}


def look_at(bdf: Bdf, handle: Any, tensor: TensorMeter) -> NvmlGpu:
    """All of it, as of now. `tensor`: this GPU's, which knows of the look before."""
    return _Gpu(handle).look(bdf, tensor)


class _Gpu:
    """One GPU, at one look: asks, and keeps the codes of what it was refused."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._codes: set[int] = set()
        self._answered = False

    def look(self, bdf: Bdf, tensor: TensorMeter) -> NvmlGpu:
        """All of it."""
        memory, power = self._ask("nvmlDeviceGetMemoryInfo"), self._ask("nvmlDeviceGetPowerUsage")
        rates, mig = self._ask("nvmlDeviceGetUtilizationRates"), self._ask("nvmlDeviceGetMigMode")
        temperature_c = self._ask("nvmlDeviceGetTemperature", pynvml.NVML_TEMPERATURE_GPU)
        reads = any(one is not None for one in (memory, power, rates, temperature_c))
        fields = self._fields()
        tensor_percent = tensor.percent(self._codes) if reads else None
        gpu = NvmlGpu(
            bdf=bdf,
            uuid=text(self._ask("nvmlDeviceGetUUID")),
            serial=text(self._ask("nvmlDeviceGetSerial")),
            module_id=self._ask("nvmlDeviceGetModuleId"),
            name=text(self._ask("nvmlDeviceGetName")),
            architecture=_ARCHITECTURES.get(self._ask("nvmlDeviceGetArchitecture")),
            memory_mib=None if memory is None else memory.total >> 20,
            temperature_c=temperature_c,
            power_w=None if power is None else power / 1000,
            utilization_percent=None if rates is None else rates.gpu,
            tensor_percent=tensor_percent,
            memory_used_mib=None if memory is None else memory.used >> 20,
            sm_clock_mhz=self._ask("nvmlDeviceGetClockInfo", pynvml.NVML_CLOCK_SM),
            ecc=self._ecc(),
            remapped_rows=self._remapped_rows(),
            nvlink=self._nvlink(fields),
            fabric=self._fabric(),
            processes=self._processes(),
            clocks_event_reasons=self._ask("nvmlDeviceGetCurrentClocksEventReasons"),
            mig=None if mig is None else bool(mig[0]),
            recovery=fields.get(_RECOVERY_FIELD),
            lost=pynvml.NVML_ERROR_GPU_IS_LOST in self._codes,
            reset_required=pynvml.NVML_ERROR_RESET_REQUIRED in self._codes,
        )
        return msgspec.structs.replace(gpu, mute=None if reads else self._mute())

    def _ask(self, name: str, *arguments: Any) -> Any:
        answer = call(name, self._handle, *arguments, codes=self._codes)
        self._answered = self._answered or answer is not None
        return answer

    def _mute(self) -> int | None:
        """The error of a GPU whose state cannot be read; its name may come from the driver."""
        hard = self._codes & _HARD
        if hard or not self._answered:
            return max(hard or self._codes, default=None)
        return None

    def _ecc(self) -> dict[str, Any] | None:
        mode = self._ask("nvmlDeviceGetEccMode")
        if mode is None:
            return None
        sram = pynvml.c_nvmlEccSramErrorStatus_v1_t()
        told = self._ask("nvmlDeviceGetSramEccErrorStatus", ctypes.byref(sram))
        pending = self._ask("nvmlDeviceGetRetiredPagesPendingStatus")
        return {
            "enabled": bool(mode[0]),
            "volatile": self._errors(pynvml.NVML_VOLATILE_ECC),
            "aggregate": self._errors(pynvml.NVML_AGGREGATE_ECC),
            "sram_threshold_exceeded": None if told is None else bool(sram.bThresholdExceeded),
            "retired_pages_pending": None if pending is None else bool(pending),
        }

    def _errors(self, counter: int) -> dict[str, int | None]:
        kinds = {"corrected": 0, "uncorrected": 1}
        name = "nvmlDeviceGetTotalEccErrors"
        return {word: self._ask(name, kind, counter) for word, kind in kinds.items()}

    def _remapped_rows(self) -> dict[str, Any] | None:
        rows = self._ask("nvmlDeviceGetRemappedRows")
        if rows is None:
            return None
        correctable, uncorrectable, pending, failure = rows
        return {
            "correctable": correctable,
            "uncorrectable": uncorrectable,
            "pending": bool(pending),
            "failure": bool(failure),
        }

    def _fields(self) -> dict[int, int]:
        """Field values in one call; each has its own code, and a type that says where it lies."""
        values = self._ask("nvmlDeviceGetFieldValues", [_RECOVERY_FIELD, *_NVLINK_FIELDS])
        found: dict[int, int] = {}
        for value in values or ():
            member = _NUMBERS.get(value.valueType)
            if value.nvmlReturn == pynvml.NVML_SUCCESS and member is not None:
                found[value.fieldId] = int(getattr(value.value, member))
        return found

    def _nvlink(self, fields: dict[int, int]) -> dict[str, Any] | None:
        """Links in order until the first that the part does not have."""
        states = []
        for link in range(_NVLINKS):
            state = self._ask("nvmlDeviceGetNvLinkState", link)
            if state is None:
                break
            states.append(bool(state))
        if not states:
            return None
        errors = {name: fields.get(number) for number, name in _NVLINK_FIELDS.items()}
        return {"links": len(states), "active": sum(states), "errors": errors}

    def _fabric(self) -> dict[str, Any] | None:
        info = pynvml.c_nvmlGpuFabricInfo_v2_t()
        if self._ask("nvmlDeviceGetGpuFabricInfoV", ctypes.byref(info)) is None:
            return None
        return {
            "state": _FABRIC_STATES.get(info.state, str(info.state)),
            "status": info.status,
            "clique_id": info.cliqueId,
            "health_mask": info.healthMask,
        }

    def _processes(self) -> tuple[GpuProcess, ...] | None:
        """By the versioned name: the plain one fails otherwise where the driver is older."""
        found = self._ask("nvmlDeviceGetComputeRunningProcesses_v3")
        if found is None:
            return None
        return tuple(
            GpuProcess(
                pid=one.pid,
                memory_mib=None if one.usedGpuMemory is None else one.usedGpuMemory >> 20,
            )
            for one in found
        )
