"""Clocks that a real program sees moved: the wall clock set, the host suspended."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

_SOURCE = Path(__file__).with_name("moved_clocks.c")
_FORM = struct.Struct("=qq")


class MovedClocks:
    """Those of the programs that run with `environment`, from their next look on."""

    def __init__(self, directory: Path) -> None:
        self._library = directory / "moved_clocks.so"
        argv = ["gcc", "-shared", "-fPIC", "-Wall", "-Werror", "-O2"]
        argv += ["-o", str(self._library), str(_SOURCE), "-ldl"]
        subprocess.run(argv, check=True, timeout=60)
        self._file = directory / "moved_clocks"
        self._wall_s = self._boottime_s = 0.0
        self._write()

    @property
    def environment(self) -> dict[str, str]:
        return {"LD_PRELOAD": str(self._library), "MOVED_CLOCKS": str(self._file)}

    def set_wall(self, seconds: float) -> None:
        """Set the wall clock forward, or back."""
        self._wall_s += seconds
        self._write()

    def suspend(self, seconds: float) -> None:
        """The host sleeps, and wakes up so much later: all but CLOCK_MONOTONIC have gone on."""
        self._wall_s += seconds
        self._boottime_s += seconds
        self._write()

    def _write(self) -> None:
        """In place: the file is mapped."""
        data = _FORM.pack(round(self._wall_s * 1e9), round(self._boottime_s * 1e9))
        with self._file.open("r+b" if self._file.exists() else "wb") as file:
            file.write(data)
