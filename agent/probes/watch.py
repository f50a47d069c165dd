"""One enclave being watched: knock until its guest answers, then round after round.

Invariants: at most one round is under way, but for the knocks; a view is only ever replaced by a
newer one of the same launch. Readers are woken for what a reader would act upon at once, and for
the rest (a counter, an uptime in an answer) now and then.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import ssl
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from agent.config import ProbesConfig
from agent.host.clock import Clock
from agent.host.guest_sockets import GuestSockets
from agent.host.process import is_ending
from agent.model.clock import Instant
from agent.model.ids import EnclaveId
from agent.model.revision import Fault
from agent.probes import pace
from agent.probes.answers import BootReading
from agent.probes.hedged_connect import HedgedConnect
from agent.probes.keys import bound_by_rounds, passed_over
from agent.probes.port import HealthView, ProbeTarget
from agent.probes.round import (
    ConnectAttempt,
    RoundOrder,
    RoundResult,
    open_guest_http,
    probe_names,
    run_round,
)
from agent.probes.stages import Stages, read_stages
from agent.probes.verdict import (
    Thresholds,
    begin,
    fold,
    rebound,
    retarget,
    shows_another_key,
    views,
)

_METRICS_EVERY = 5  # rounds
_ROUNDS_A_CONNECTION = _METRICS_EVERY  # at most: by then another key is seen
QEMU_EXIT = "qemu_exit"  # as the end of its VM is called where the process is watched
_MAX_FINISHED = 4096  # stages of one boot that are told apart
_WORDS = {None: "unknown", True: "healthy", False: "unhealthy"}
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all watches share. `slots` bounds the rounds under way on this host."""

    config: ProbesConfig
    clock: Clock
    context: ssl.SSLContext
    sockets: GuestSockets
    changed: Callable[[EnclaveId], None]
    slots: asyncio.Semaphore


class Watch:
    """The watch of one launch. `view` is always the newest published one."""

    def __init__(self, target: ProbeTarget, surroundings: Surroundings) -> None:
        self._target = target
        self._around = surroundings
        config = surroundings.config
        self._thresholds = Thresholds(config.success_threshold, config.failure_threshold)
        self._health = begin(probe_names(target))
        self._bound = target.bound_key
        self._passed_over: str | None = None  # by the round before, wholly
        self._stages = Stages()
        self._began_s = asyncio.get_running_loop().time()
        self._notified_s = self._told_s = self._began_s
        self.enclave = target.enclave
        self.launch_uuid = target.launch_uuid
        self.view = HealthView(
            launch_uuid=target.launch_uuid, probes=views(self._health, self._thresholds)
        )

    def retarget(self, target: ProbeTarget) -> None:
        """Go on with the same launch, asking what `target` says from the next round on."""
        if target != self._target:
            self._target = target
            self._health = retarget(self._health, probe_names(target))
            if target.bound_key not in (None, self._bound):
                self._bound = target.bound_key
                self._health = rebound(self._health)

    def begin_anew(self) -> None:
        """What was seen says nothing of now; that it had booted, and its key, do."""
        before, old = self._health, self.view
        fresh = begin(probe_names(self._target))
        self._health = replace(fresh, flaps=before.flaps, key=before.key)
        self.view = msgspec.structs.replace(
            old,
            healthy=None,
            healthy_since=None,
            fault=None,
            probes=views(self._health, self._thresholds),
            stage_since=None,
            shut_since=None,
        )
        self._notify(old)

    async def run(self) -> None:
        """Probe until cancelled."""
        self._take(await self._first_round())
        rounds = 1
        while True:
            rounds = await self._rounds_on_one_connection(rounds)

    async def _rounds_on_one_connection(self, rounds: int) -> int:
        """A round over a new connection, and further ones over it while all is well.

        Most of what a round costs is its handshake. Whatever is not as it should be is looked at
        over new connections, as a client of the guest would open them. A connection that is kept
        shows the key of when it was opened, so that none is kept for long. `rounds`: how many
        there were; returns how many there are.
        """
        place = (self._target.https, self._target.host)
        async with open_guest_http(
            self._target, self._around.context, self._around.sockets
        ) as guest_http:
            while True:
                await asyncio.sleep(self._pause_s())
                if (self._target.https, self._target.host) != place:
                    return rounds
                order = self._order(with_metrics=rounds % _METRICS_EVERY == 0)
                async with self._around.slots:
                    result = await run_round(self._target, order, guest_http)
                self._take(result)
                rounds += 1
                if rounds % _ROUNDS_A_CONNECTION == 0 or not self._well(result):
                    return rounds

    def _well(self, result: RoundResult) -> bool:
        """Only the next connection tells whether the key that this one shows is to be bound."""
        if self._target.binds_itself and self._bound is None:
            return False
        return self._health.healthy is True and all(one.passed for one in result.observations)

    async def _first_round(self) -> RoundResult:
        def begin_round(attempt: ConnectAttempt) -> Coroutine[Any, Any, RoundResult]:
            return run_round(self._target, self._order(attempt=attempt))

        return await HedgedConnect(
            begin_round,
            patience_s=self._around.config.timeout_s,
            pause_s=self._until_first_healthy_s,
            silent=self._take_silence,
        ).run()

    def _order(
        self, *, with_metrics: bool = True, attempt: ConnectAttempt | None = None
    ) -> RoundOrder:
        return RoundOrder(
            context=self._around.context,
            sockets=self._around.sockets,
            timeout_s=self._around.config.timeout_s,
            now=self._around.clock.now,
            with_metrics=with_metrics,
            booted=self.view.boot_complete,
            tells_containers=bool((self.view.containers or {}).get("containers")),
            attempt=attempt,
        )

    def _take_silence(self, result: RoundResult) -> None:
        """Of the many knocks that nobody answered, one an interval counts as a failed round."""
        self._note_door(result)
        now_s = asyncio.get_running_loop().time()
        if now_s >= self._told_s + self._around.config.interval_s:
            self._told_s = now_s
            self._take(result)

    def _note_door(self, result: RoundResult) -> None:
        """A door that shuts, or opens, is told at once: it is judged by how long it was shut."""
        old = self.view
        since = (old.shut_since or result.at) if result.shut else None
        self.view = msgspec.structs.replace(old, shut_since=since)
        self._notify(old)

    def _take(self, result: RoundResult) -> None:
        """Fold a result in, and publish."""
        before = self._health
        if self._bound is None and self._target.binds_itself:
            newest = passed_over(result.observations, result.keys)
            self._bound = bound_by_rounds(self._passed_over, newest)
            self._passed_over = newest
        self._health = fold(
            before,
            result.observations,
            result.keys,
            result.at,
            self._thresholds,
            bound=self._bound,
        )
        if self._health.fault is not None:
            self._health = replace(self._health, fault=self._cause(self._health.fault))
        if before.healthy is not self._health.healthy:
            self._log_change(before.healthy)
        self._publish(result)

    def _cause(self, fault: Fault) -> Fault:
        """What a probe found, or the end of the VM, if that is why.

        A guest falls silent before its process is gone, by moments or by minutes: which of the two
        is noticed first must not decide what an update is said to have failed of.
        """
        process = self._target.process
        if process is None or not is_ending(process):
            return fault
        return Fault(code=QEMU_EXIT, detail=f"QEMU is ending: {fault.detail}")

    def _log_change(self, before: bool | None) -> None:
        fault = self._health.fault
        _log.info(
            "health changed",
            extra={
                "enclave": self.enclave,
                "from": _WORDS[before],
                "to": _WORDS[self._health.healthy],
                "reason": f"{fault.probe}: {fault.code}" if fault else None,
            },
        )

    def _publish(self, result: RoundResult) -> None:
        old, health = self.view, self._health
        believed = self._bound is None or set(result.keys) == {self._bound}
        view = msgspec.structs.replace(
            old,
            answered=old.answered or result.answered,
            healthy=health.healthy,
            healthy_since=health.healthy_since,
            flaps=health.flaps,
            fault=health.fault,
            probes=views(health, self._thresholds),
            spki_sha256=health.key,
            bound_spki_sha256=self._bound,
            another_key=shows_another_key(health),
            shut_since=(old.shut_since or result.at) if result.shut else None,
        )
        self.view = self._with_documents(view, result) if believed else view
        self._notify(old)

    def _with_documents(self, view: HealthView, result: RoundResult) -> HealthView:
        """With what the guest told of itself; of a stranger's connection nothing is taken."""
        if result.boot is not None and result.boot.document is not None:
            view = self._with_stages(view, result.boot, result.at)
        return msgspec.structs.replace(
            view,
            containers=result.containers or view.containers,
            metrics=result.metrics or view.metrics,
        )

    def _with_stages(self, view: HealthView, boot: BootReading, at: Instant) -> HealthView:
        """With how far its boot is, and since when it is there."""
        seen, stages = self._stages, read_stages(boot.document)
        if len(seen.finished) < _MAX_FINISHED:
            self._stages = dataclasses.replace(stages, finished=seen.finished | stages.finished)
        same = view.stage_since is not None and view.stage == stages.under_way
        return msgspec.structs.replace(
            view,
            boot_stages=boot.document,
            boot_complete=boot.complete,
            boot_failed=boot.failed,
            stage=stages.under_way,
            stage_before=stages.before,
            stage_since=view.stage_since if same else at,
            gpus_attested=view.gpus_attested or stages.gpus_attested,
            progressed_at=view.progressed_at if stages.finished <= seen.finished else at,
        )

    def _notify(self, old: HealthView) -> None:
        now_s = asyncio.get_running_loop().time()
        settled = self._health.healthy is True
        patience_s = self._around.config.interval_s * (_METRICS_EVERY if settled else 1)
        urgent = _essence(old) != _essence(self.view)
        if urgent or (self.view != old and now_s >= self._notified_s + patience_s):
            self._notified_s = now_s
            self._around.changed(self.enclave)

    def _pause_s(self) -> float:
        """Before the next round."""
        health, interval_s = self._health, self._around.config.interval_s
        if health.healthy or health.flaps:
            return pace.steady_s(interval_s, asyncio.get_running_loop().time())
        if health.fault is None:
            return pace.confirm_s(interval_s)
        return self._until_first_healthy_s()

    def _until_first_healthy_s(self) -> float:
        elapsed_s = asyncio.get_running_loop().time() - self._began_s
        return pace.until_first_healthy_s(elapsed_s, self._around.config.interval_s)


def _essence(view: HealthView) -> tuple[object, ...]:
    """What a reader acts upon at once: no counters beyond what is needed, no texts."""
    return (
        view.answered,
        view.boot_complete,
        view.boot_failed,
        view.healthy,
        view.healthy_since,
        view.spki_sha256,
        view.bound_spki_sha256,
        view.another_key,
        view.stage,
        view.gpus_attested,
        view.progressed_at,
        view.shut_since,
        (view.fault.code, view.fault.probe) if view.fault else None,
        tuple((probe.name, probe.passing) for probe in view.probes),
    )
