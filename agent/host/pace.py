"""How long to wait before something is put back again that another program insists on changing."""

from __future__ import annotations

import time
from collections.abc import Callable

_PATIENCE = 10
_TOGETHER_S = 5.0
_LONGEST_S = 1.0


class Pace:
    """The first few repairs are made at once; those that follow soon on them wait longer."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._repairs = 0
        self._last = 0.0

    def after_repair(self) -> float:
        """Seconds to wait before the next look."""
        now = self._monotonic()
        self._repairs = self._repairs + 1 if now - self._last < _TOGETHER_S else 1
        self._last = now
        if self._repairs <= _PATIENCE:
            return 0.0
        return min(_LONGEST_S, 0.25 * (self._repairs - _PATIENCE))
