"""Whether the loops progress: each promises when it will be back, and is late if it is not.

Promises are kept by CLOCK_MONOTONIC: while the host is suspended no loop progresses, and none is
late for that. That the event loop runs says little: a loop that waits for ever on a lock, a thread
or a program lets it run. Whoever asks (the watchdog, /healthz) is told the names of those that are
late.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator


class Liveness:
    """The promises of one process."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._due: dict[str, float] = {}

    def promise(self, loop: str, within_s: float) -> None:
        """This loop will be here again by then; what it promised before is kept."""
        self._due[loop] = self._monotonic() + within_s

    def rest(self, loop: str) -> None:
        """It waits for news, for as long as there are none."""
        self._due.pop(loop, None)

    @contextlib.contextmanager
    def busy(self, loop: str, within_s: float) -> Iterator[None]:
        """The body ends by then, however it ends."""
        self.promise(loop, within_s)
        try:
            yield
        finally:
            self.rest(loop)

    def late(self) -> tuple[str, ...]:
        """Those that should have been back by now."""
        now = self._monotonic()
        return tuple(sorted(loop for loop, due in self._due.items() if due < now))
