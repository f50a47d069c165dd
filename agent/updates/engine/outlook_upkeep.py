"""What is looked at soon after rows change, and now and then: what could come next, and what the
host has against what there is. It shows and protects; it moves nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from agent.capacity.listen_rules import ListenRules
from agent.errors import AgentError, describe
from agent.host.wake import Wake
from agent.updates.engine.data_plane import DataPlaneWatch
from agent.updates.engine.listener_watch import ListenerWatch
from agent.updates.snapshot.forecast import Forecaster
from agent.updates.snapshot.publisher import SnapshotPublisher

_EVERY_S = 10.0
_AT_MOST_EVERY_S = 0.5
_AFTER_S = 0.1  # what changed the rows (a switch) is being done now: do not slow it
_WITHIN_S = 60.0


class OutlookUpkeep:
    """Forecast, connections, the data plane, listeners, limits, and which images must stay."""

    def __init__(
        self,
        forecaster: Forecaster,
        publisher: SnapshotPublisher,
        data_plane: DataPlaneWatch,
        *,
        rows_changed: Wake,
        listen_rules: Callable[[], ListenRules],
        protect_images: Callable[[], Awaitable[None]],
        promise: Callable[[float], None],
    ) -> None:
        """`promise` is told within how many seconds the next turn begins."""
        self._forecaster = forecaster
        self._publisher = publisher
        self._data_plane = data_plane
        self._rows_changed = rows_changed
        self._listen_rules = listen_rules
        self._protect_images = protect_images
        self._promise = promise
        self._listeners = ListenerWatch(publisher)

    async def keep(self) -> None:
        """For ever. What fails is a problem, and tried again."""
        changed = True
        while True:
            seen = self._rows_changed.count
            self._promise(_EVERY_S + _WITHIN_S)
            try:
                await self._look(changed=changed)
                self._publisher.clear_problem("forecast")
            except AgentError as error:
                self._publisher.raise_problem(
                    "forecast",
                    code=error.code,
                    severity="warning",
                    detail=describe(error),
                    mend="see the log; it is tried again",
                )
            await asyncio.sleep(_AT_MOST_EVERY_S)
            changed = await self._rows_changed.beyond(seen, _EVERY_S) > seen
            await asyncio.sleep(_AFTER_S)

    async def _look(self, *, changed: bool) -> None:
        self._publisher.show_forecast(await self._forecaster.make())
        await self._data_plane.look(self._publisher.rows.values(), changed=changed)
        self._listeners.look(self._publisher.rows, self._listen_rules(), self._data_plane.unheld)
        self._show_unlimited()
        await self._protect_images()

    def _show_unlimited(self) -> None:
        if (unlimited := self._data_plane.unlimited) is None:
            self._publisher.clear_problem("limits")
            return
        self._publisher.raise_problem(
            "limits",
            code="limits_not_in_force",
            severity="warning",
            detail=unlimited,
            mend='docs/host.md, "Shares", says what limits need',
        )
