"""After a suspension of the host: its deadlines have passed, what was observed holds no more.

It is as after a restart of the agent. Deadlines run on CLOCK_BOOTTIME, which has counted the
suspension; health and evidence are from before it, when the guests stood still with the host. So
both are looked at anew before anybody is moved by them, and whoever waits for a deadline is woken:
timers of the event loop have not counted that time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import MutableMapping

from agent.host.suspension import Suspensions
from agent.model.ids import EnclaveId
from agent.probes.port import Probes
from agent.updates.engine.wakeups import Wakeups
from agent.updates.planner.types import Judged

log = logging.getLogger(__name__)
_LOOK_EVERY_S = 2.0


class Resumption:
    """One an engine. `look` comes before every turn, `watch` wakes those who rest."""

    def __init__(
        self,
        suspensions: Suspensions,
        probes: Probes,
        verdicts: MutableMapping[EnclaveId, Judged],
        wakeups: Wakeups,
    ) -> None:
        self._suspensions = suspensions
        self._probes = probes
        self._verdicts = verdicts
        self._wakeups = wakeups

    def look(self) -> None:
        """Forget what was observed before a suspension, if there was one since the last look."""
        slept_s = self._suspensions.slept_s()
        if not slept_s:
            return
        log.warning("the host was suspended", extra={"slept_s": round(slept_s, 1)})
        self._probes.begin_anew()
        for enclave_id, judged in list(self._verdicts.items()):
            if judged.verdict.attested is not False:  # what was refused stays so until it is good
                del self._verdicts[enclave_id]
        self._wakeups.notify()

    async def watch(self) -> None:
        """For ever."""
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            self.look()
