"""Whether the host was suspended: one of the kernel's clocks counts that time, the other does not.

CLOCK_BOOTTIME is CLOCK_MONOTONIC and the time of all suspensions (clock_gettime(2)); both are
slewed alike, and neither is ever set. So the one is ahead of the other by more than before only
after a suspension.
"""

from __future__ import annotations

import time
from collections.abc import Callable

_NOTICED_FROM_S = 1.0  # the two are not read at once


def _boottime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Suspensions:
    """Those of this host, for one who asks."""

    def __init__(
        self,
        boottime: Callable[[], float] = _boottime,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._boottime = boottime
        self._monotonic = monotonic
        self._ahead_s = boottime() - monotonic()

    def slept_s(self) -> float:
        """For how many seconds it was suspended since this was last asked; 0: it was not."""
        ahead_s = self._boottime() - self._monotonic()
        slept_s = ahead_s - self._ahead_s
        if slept_s < _NOTICED_FROM_S:
            return 0.0
        self._ahead_s = ahead_s
        return slept_s
