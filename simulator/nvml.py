"""NVML's library as a host could have it: the shim, compiled once, and its scenario."""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

NAME = "libnvidia-ml.so.1"
_SOURCE = Path(__file__).with_name("nvml_shim.c")

# One H100 of an HGX board, as its driver tells about it.
H100: dict[str, object] = {
    "serial": "1650000000001",
    "name": "NVIDIA H100 80GB HBM3",
    "architecture": 9,
    "memory_mib": 81559,
    "temperature_c": 33,
    "power_mw": 71250,
    "utilization": 0,
    "memory_used_mib": 612,
    "sm_clock_mhz": 345,
    "mig": 0,
    "ecc": 1,
    "volatile_corrected": 0,
    "volatile_uncorrected": 0,
    "aggregate_corrected": 2,
    "aggregate_uncorrected": 0,
    "sram_exceeded": 0,
    "remapped_rows": "0 0 0 0",
    "clocks_event_reasons": 1,
    "nvlinks": "18 18",
    "fabric": "3 0 0 0x1aa",  # completed; no condition of its health mask is true
    "event_types": 0xC008,
    "gpm": 1,
    "tensor": 0.0,
    "field_230": 0,
    "field_52": 0,
    "field_59": 0,
}


@cache
def _compiled(old: bool) -> Path:
    """Kept for as long as this process lives."""
    path = Path(tempfile.mkdtemp(prefix="nvml-shim-")) / NAME
    atexit.register(shutil.rmtree, path.parent, ignore_errors=True)
    compile_shim(path, old=old)
    return path


def compile_shim(path: Path, *, old: bool = False) -> None:
    """Make the library. `old`: without what an older driver lacks."""
    flags = ["-DOLD_DRIVER"] if old else []
    argv = ["gcc", "-shared", "-fPIC", "-Wall", "-Werror", *flags]
    argv += [f"-Wl,-soname,{NAME}", "-o", str(path), str(_SOURCE)]
    subprocess.run(argv, check=True, timeout=60)


class Nvml:
    """A library in a directory, and what it says; change it while it is in use."""

    def __init__(self, directory: Path, *, old: bool = False) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.library = directory / NAME
        if not self.library.exists():
            shutil.copy(_compiled(old), self.library)
        self._scenario = directory / "nvml.scenario"
        self._driver: dict[str, object] = {"driver_version": "580.95.05", "cc": "0 0 0"}
        self._gpus: dict[str, dict[str, object]] = {}
        self._functions: dict[str, str | int] = {}
        self._events: list[tuple[str, int, int]] = []
        self._write()

    def gpu(self, bdf: str, **values: Any) -> None:
        """Add one, or change values of one; None takes a value away."""
        number = len(self._gpus)
        fresh = H100 | {"uuid": f"GPU-{number}", "module_id": 7 - number}
        known = self._gpus.setdefault(bdf, fresh)
        known.update(values)
        self._write()

    def lost(self, bdf: str) -> None:
        """The driver does not have it any more: whoever asks anew is not told of it."""
        self._gpus.pop(bdf, None)
        self._write()

    def driver(self, **values: object) -> None:
        self._driver.update(values)
        self._write()

    def function(self, name: str, what: str | int | None) -> None:
        """Let a function `hang`, `crash` or answer a code; None: be itself again."""
        if what is None:
            self._functions.pop(name, None)
        else:
            self._functions[name] = what
        self._write()

    def event(self, bdf: str, kind: int, data: int) -> None:
        self._events.append((bdf, kind, data))
        self._write()

    def no_events(self) -> None:
        """What was told is not told again to whoever asks next."""
        self._events.clear()
        self._write()

    def _write(self) -> None:
        lines = [f"* {key} {value}" for key, value in self._driver.items()]
        for bdf, values in self._gpus.items():
            lines += [f"{bdf} {key} {value}" for key, value in values.items() if value is not None]
        lines += [f"{name} {what}" for name, what in self._functions.items()]
        lines += [f"event {bdf} {kind} {data}" for bdf, kind, data in self._events]
        scratch = self._scenario.with_suffix(".new")
        scratch.write_text("".join(f"{line}\n" for line in lines))
        scratch.rename(self._scenario)


def alive(pid: int) -> bool:
    """Whether there is a process of that pid, zombies included."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
