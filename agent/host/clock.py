"""The clock: CLOCK_BOOTTIME with the boot id for deadlines, the wall clock for print only."""

from __future__ import annotations

import datetime as dt
import time
from pathlib import Path
from typing import Protocol

from agent.model.clock import Instant


class Clock(Protocol):
    """Where moments come from."""

    def now(self) -> Instant: ...


class RealClock:
    """This host's clock."""

    def __init__(self, proc_root: Path = Path("/proc")) -> None:
        self._boot_id = (proc_root / "sys/kernel/random/boot_id").read_text().strip()

    def now(self) -> Instant:
        return Instant(
            boot_id=self._boot_id,
            boottime_s=time.clock_gettime(time.CLOCK_BOOTTIME),
            wall=dt.datetime.now(dt.UTC),
        )
