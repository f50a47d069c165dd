"""The reconciler: one task a deployment, which is the only one to move it.

A turn: observe, read the rows, ask the planner; persist what it writes and ask again, until it
answers with actions. Exactly those actions are in flight afterwards: what it no longer wants is
cancelled, what ended is told to it in the next turn. After a crash the same turns run again from
what is recorded.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from agent.host.clock import Clock
from agent.host.wake import Wake
from agent.model.clock import Instant
from agent.model.ids import DeploymentName, EnclaveId
from agent.store.port import Reader, Store, Transaction
from agent.updates.engine.persist import persist, whose_words
from agent.updates.planner.plan import plan
from agent.updates.planner.types import Action, Outcome, Plan
from agent.updates.snapshot.rows import Observation, Rows, read_rows, situation

log = logging.getLogger(__name__)

_MAX_WRITES = 64
_BACKOFF_CAP_S = 30.0


@dataclass(slots=True)
class _Ended:
    """An action that ended, how, when, and how often in a row."""

    outcome: Outcome
    at: Instant
    times: int

    @property
    def again_at(self) -> Instant:
        return self.at.plus(min(_BACKOFF_CAP_S, 0.5 * 2 ** min(self.times, 8)))


class Reconciler:
    """Owns one deployment until it is deleted."""

    def __init__(
        self,
        name: DeploymentName,
        *,
        store: Store,
        clock: Clock,
        wakeup: Wake,
        busy: Callable[[], AbstractContextManager[None]],
        observe: Callable[[DeploymentName, Rows | None], Awaitable[Observation]],
        perform: Callable[[DeploymentName, Action], Awaitable[Outcome]],
        publish: Callable[[DeploymentName, Rows | None], None],
        reassign_gpus: Callable[[Transaction, EnclaveId], None],
        console_tail: Callable[[EnclaveId], str],
        drain_console: Callable[[EnclaveId], Awaitable[None]],
        well: Callable[[], None],
    ) -> None:
        self.name = name
        self._store = store
        self._clock = clock
        self._wakeup = wakeup
        self._busy = busy  # around every turn, which is to end soon
        self._observe = observe
        self._perform = perform
        self._publish = publish
        self._reassign_gpus = reassign_gpus
        self._console_tail = console_tail
        self._drain_console = drain_console
        self._well = well  # told after every turn that went through
        self._in_flight: dict[Action, asyncio.Task[None]] = {}
        self._ended: dict[Action, _Ended] = {}
        self._rows: Rows | None = None
        self.settled = asyncio.Event()

    async def run(self) -> None:
        """Until the deployment is deleted, or cancelled (actions in flight are cancelled too)."""
        try:
            while True:
                seen = self._wakeup.count
                with self._busy():
                    answer = await self._turn()
                self._well()
                if answer is None:
                    return
                wake_at = self._have_in_flight(answer)
                self.settled.set()
                await self._wakeup.beyond(seen, self._seconds_until(wake_at))
        finally:
            self.settled.set()
            await self._cancel_all()

    async def show(self) -> None:
        """Publish what is recorded now, without a turn: a request has just changed it."""
        self._publish(self.name, await self._store.read(lambda tx: read_rows(tx, self.name)))

    async def _turn(self) -> Plan | None:
        """One turn; None when the deployment is gone."""
        seen = await self._observe(self.name, self._rows)
        outcomes = {action: ended.outcome for action, ended in self._ended.items()}
        for action, outcome in outcomes.items():
            seen.outcomes[action] = outcome
        rows, answer = await self._store.read(lambda tx: self._ask(tx, seen))
        if answer is not None and answer.write is not None:
            if (speaker := whose_words(answer.write)) is not None:
                await self._drain_console(speaker)  # a silent console is read but now and then
            rows, answer = await self._store.transact(lambda tx: self._settle(tx, seen))
        self._rows = rows
        self._publish(self.name, rows)
        return answer

    def _ask(self, tx: Reader, seen: Observation) -> tuple[Rows | None, Plan | None]:
        rows = read_rows(tx, self.name)
        return (rows, plan(situation(rows, seen))) if rows else (None, None)

    def _settle(self, tx: Transaction, seen: Observation) -> tuple[Rows | None, Plan | None]:
        """Persist and ask again until there is nothing left to persist."""
        for _ in range(_MAX_WRITES):
            rows, answer = self._ask(tx, seen)
            if rows is None or answer is None or answer.write is None:
                return rows, answer
            persist(tx, self.name, answer.write, self._console_tail, seen.now)
            if answer.write.reassign_gpus is not None:
                self._reassign_gpus(tx, answer.write.reassign_gpus)
        raise RuntimeError(f"the planner does not come to rest for {self.name}")

    def _have_in_flight(self, answer: Plan) -> Instant | None:
        """Start what is wanted, cancel what is not; returns when to look again."""
        for action in [action for action in self._ended if action not in answer.actions]:
            del self._ended[action]
        coming_down = self._cancel_unwanted(answer.actions)
        wake_at = answer.wake_at
        now = self._clock.now()
        for action in answer.actions - self._in_flight.keys():
            if action.enclave is not None and action.enclave in coming_down:
                continue  # its end wakes this reconciler
            ended = self._ended.get(action)
            if ended is None or now.reached(ended.again_at):
                self._start(action)
            elif wake_at is None or ended.again_at.boottime_s < wake_at.boottime_s:
                wake_at = ended.again_at
        return wake_at

    def _cancel_unwanted(self, wanted: frozenset[Action]) -> set[EnclaveId]:
        """Enclaves on which a cancelled action is still coming down."""
        coming_down = set()
        for action, task in self._in_flight.items():
            if action not in wanted:
                task.cancel()
                if action.enclave is not None:
                    coming_down.add(action.enclave)
        return coming_down

    def _start(self, action: Action) -> None:
        task = asyncio.create_task(self._run_action(action), name=f"{self.name}:{action.kind}")
        self._in_flight[action] = task
        task.add_done_callback(lambda _: self._action_ended(action))

    async def _run_action(self, action: Action) -> None:
        outcome = await self._perform(self.name, action)
        before, times = self._ended.get(action), 0
        if before is not None:  # a try that failed may have done some of it
            outcome = replace(outcome, count=before.outcome.count + outcome.count)
            times = before.times + 1
        self._ended[action] = _Ended(outcome, self._clock.now(), times)

    def _action_ended(self, action: Action) -> None:
        """Also of a task that was cancelled before its first step."""
        del self._in_flight[action]
        self._wakeup.notify()

    async def _cancel_all(self) -> None:
        tasks = list(self._in_flight.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _seconds_until(self, at: Instant | None) -> float | None:
        if at is None:
            return None
        return max(0.0, at.boottime_s - self._clock.now().boottime_s)
