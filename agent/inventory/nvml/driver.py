"""NVML itself, asked through nvidia-ml-py. Runs only in the NVML process: a call may never return.

Every field is optional: a symbol that an older driver lacks, a function that a board does not
support and a permission that is missing all leave it None. Structures that carry a version are
passed by reference; the settings of confidential computing answer with a bare code.
"""

from __future__ import annotations

import contextlib
import ctypes
from typing import Any

import pynvml

from agent.inventory.nvml.calls import call, text
from agent.inventory.nvml.one_gpu import look_at
from agent.inventory.nvml.tensor import TensorMeter
from agent.inventory.nvml.values import NvmlEvent, NvmlGpu, Trouble
from agent.model.gpu import CcMode
from agent.model.ids import Bdf

_XID, _UNAVAILABLE, _RECOVERY = 0x8, 0x4000, 0x8000
_EVENTS = {_XID: "xid", _UNAVAILABLE: "unavailable", _RECOVERY: "recovery_action"}
_CODES = {
    pynvml.NVML_ERROR_NO_PERMISSION: "nvml_forbidden",
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "nvml_no_driver",
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: "nvml_no_library",
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "nvml_version_mismatch",
}


class DriverError(Exception):
    """NVML cannot be used at all."""

    def __init__(self, trouble: Trouble) -> None:
        super().__init__(trouble.detail)
        self.trouble = trouble


class RefusedError(Exception):
    """NVML does not give a GPU away. `error`: its code."""

    def __init__(self, error: int) -> None:
        super().__init__(f"NVML error {error}")
        self.error = error


class NvmlDriver:
    """The library, opened once. Attaching a GPU happens when its handle is first asked for."""

    def __init__(self, library: str) -> None:
        self._library = library
        self._handles: dict[Bdf, Any] = {}
        self._tensor: dict[Bdf, TensorMeter] = {}
        self._events: Any = None
        self.tells_events = False  # whether any GPU found so far has events to tell

    def open(self) -> None:
        """Load, and initialise without attaching any GPU. Raises DriverError."""
        try:
            # By its path first: a second load by the well-known name finds the one that is loaded.
            ctypes.CDLL(self._library)
        except OSError as error:
            raise DriverError(
                Trouble(
                    code="nvml_no_library",
                    detail=f"{self._library} cannot be loaded: {error}",
                )
            ) from error
        try:
            pynvml.nvmlInitWithFlags(
                pynvml.NVML_INIT_FLAG_NO_GPUS | pynvml.NVML_INIT_FLAG_NO_ATTACH
            )
        except pynvml.NVMLError as error:
            raise DriverError(_trouble(error)) from error
        self._events = call("nvmlEventSetCreate")

    def find(self, bdf: Bdf) -> None:
        """Have its handle, and its events where it has any to tell. Raises RefusedError.

        By its address: what refuses, or hangs, is that GPU then, and no index of NVML's.
        """
        if bdf in self._handles:
            return
        try:
            handle = pynvml.nvmlDeviceGetHandleByPciBusId(bdf)
        except pynvml.NVMLError as error:
            raise RefusedError(error.value) from error
        self._register(handle)
        self._handles[bdf] = handle
        self._tensor[bdf] = TensorMeter(handle)

    def _register(self, handle: Any) -> None:
        if self._events is None:
            return
        supported = call("nvmlDeviceGetSupportedEventTypes", handle)
        mask = _XID | _UNAVAILABLE | _RECOVERY
        mask = mask if supported is None else mask & supported
        if mask:
            with contextlib.suppress(pynvml.NVMLError):
                pynvml.nvmlDeviceRegisterEvents(handle, mask, self._events)
                self.tells_events = True

    def version(self) -> str | None:
        """The driver's."""
        return text(call("nvmlSystemGetDriverVersion"))

    def cc_mode(self) -> CcMode | None:
        """One for all GPUs that the host's driver can use."""
        settings = pynvml.c_nvmlSystemConfComputeSettings_v1_t()
        if call("nvmlSystemGetConfComputeSettings", ctypes.byref(settings)) != 0:
            state = call("nvmlSystemGetConfComputeState")
            if state is None:
                return None
            return _cc_mode(state.ccFeature, state.devToolsMode, 0)
        return _cc_mode(settings.ccFeature, settings.devToolsMode, settings.multiGpuMode)

    def look(self, bdf: Bdf) -> NvmlGpu:
        """Everything about one GPU that was found."""
        return look_at(bdf, self._handles[bdf], self._tensor[bdf])

    def next_event(self, timeout_ms: int) -> NvmlEvent | None:
        """Wait for one; None when none came in time. Raises DriverError when none ever will."""
        try:
            data = pynvml.nvmlEventSetWait(self._events, timeout_ms)
        except pynvml.NVMLError as error:
            if error.value == pynvml.NVML_ERROR_TIMEOUT:
                return None
            raise DriverError(_trouble(error)) from error
        kind = _EVENTS.get(data.eventType)
        if kind is None:
            return None
        return NvmlEvent(kind=kind, bdf=self._whose(data.device), data=data.eventData)

    def _whose(self, device: Any) -> Bdf | None:
        address = _address(device)
        found = (bdf for bdf, handle in self._handles.items() if _address(handle) == address)
        return next(found, None)


def _address(handle: Any) -> int | None:
    return ctypes.cast(handle, ctypes.c_void_p).value


def _cc_mode(feature: int, devtools: int, multi_gpu: int) -> CcMode:
    if multi_gpu == 1:
        return CcMode.PPCIE
    if not feature:
        return CcMode.OFF
    return CcMode.DEVTOOLS if devtools else CcMode.ON


def _trouble(error: Any) -> Trouble:
    code = _CODES.get(error.value, f"nvml_error_{error.value}")
    return Trouble(code=code, detail=f"NVML: {error}")
