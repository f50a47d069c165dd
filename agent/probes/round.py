"""One round of probing: everything that is asked of one enclave, side by side where it can be.

Over one TLS connection, one after the other: boot stages, containers, metrics, the workload; of a
guest that has booted, stages and metrics only now and then. The connection is the round's own, or
that of a visit of several rounds. Beside it each TCP check on a connection of its own. A round
takes at most twice the timeout, however the guest behaves, and its result says something about
every probe.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from agent.host.contact import Door, Ending, HttpAnswer, NoAnswerError, open_tcp
from agent.host.guest_sockets import UNMARKED, GuestSockets
from agent.model.clock import Instant
from agent.probes.answers import (
    MAX_BODY_BYTES,
    BootReading,
    Reading,
    judge_boot_stages,
    judge_containers,
    read_document,
    tells_nothing,
)
from agent.probes.guest_metrics import read_metrics
from agent.probes.port import ProbeTarget, TcpCheck
from agent.probes.result import ProbeResult
from agent.probes.workload import Asked, judge_workload

if TYPE_CHECKING:
    from agent.host.guest_http import GuestHttp

BOOT_PROBE = "boot-stages"
CONTAINERS_PROBE = "containers"
_WELL_KNOWN = "/.well-known/tinfoil-"
_SETTLE_S = 0.15
_SHUT_WITHIN_S = 2.0  # in which QEMU learns from a slow guest that it refuses
_BODY_WAIT_S = 0.5
_MAX_ANSWER_BYTES = 16 * 1024  # of the workload; the shim's 503 holds all stages before its error
_TCP_AT_ONCE = 4
_ENDINGS = {
    Ending.TOO_LONG: f"its answer is longer than {MAX_BODY_BYTES} bytes",
    Ending.CUT_OFF: "its answer broke off",
}


@dataclass(frozen=True, slots=True)
class RoundResult:
    """`answered`: the guest gave at least one HTTP answer. Documents: None where there is none.

    `at`: by then all had answered, or had failed to; what it took to be sure comes after. `shut`:
    the guest's port kept us out (see `_is_shut`); a guest that is silent did not.
    """

    at: Instant
    answered: bool = False
    shut: bool = False
    observations: tuple[ProbeResult, ...] = ()
    keys: tuple[str, ...] = ()
    boot: BootReading | None = None
    containers: dict[str, Any] | None = None
    metrics: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class ConnectAttempt:
    """See RoundOrder."""

    reach_s: float
    reached: Callable[[], None]


@dataclass(frozen=True, slots=True)
class RoundOrder:
    """How to ask.

    An `attempt` is for a guest that may not be up yet: its first answer has to come within
    `reach_s`, `reached` is called on it, and only then the TCP checks begin. `booted`: the guest
    is known to have booted. It stays so, since it cannot boot again without another launch.
    `tells_containers`: it has listed its containers in this launch, and so is to go on doing so.
    """

    context: ssl.SSLContext
    timeout_s: float
    now: Callable[[], Instant]
    with_metrics: bool = False
    booted: bool = False
    tells_containers: bool = False
    attempt: ConnectAttempt | None = None
    sockets: GuestSockets = UNMARKED


def workload_probe(path: str) -> str:
    """The name of the probe of the health path."""
    return f"https {path}"


def tcp_probe(check: TcpCheck) -> str:
    """The name of a TCP check."""
    return f"tcp {check.guest_port}"


def probe_names(target: ProbeTarget) -> tuple[str, ...]:
    """Every probe that a round has a result of, in the order of print."""
    path = target.health_path
    workload = () if path is None else (workload_probe(path),)
    return (BOOT_PROBE, CONTAINERS_PROBE, *workload, *(tcp_probe(one) for one in target.tcp))


async def run_round(
    target: ProbeTarget, order: RoundOrder, guest_http: GuestHttp | None = None
) -> RoundResult:
    """Ask everything once, in this visit or in one of its own.

    Raises nothing that a guest could cause.
    """
    if guest_http is None:
        async with open_guest_http(target, order.context, order.sockets) as own:
            return await run_round(target, order, own)
    answered = asyncio.Event()
    tcp = asyncio.create_task(_check_all_tcp(target, order, answered))
    try:
        https = await _Interview(target, order, answered).run(guest_http)
        if order.attempt and not https.answered:
            return https
        accepted = await tcp
        return replace(
            https,
            at=max((https.at, *(at for at, _ in accepted)), key=lambda at: at.boottime_s),
            observations=(*https.observations, *(result for _, result in accepted)),
        )
    finally:
        if not tcp.done():
            tcp.cancel()
            await asyncio.gather(tcp, return_exceptions=True)


def open_guest_http(
    target: ProbeTarget, context: ssl.SSLContext, sockets: GuestSockets = UNMARKED
) -> GuestHttp:
    """For one round or more. The client's library is loaded by the first."""
    from agent.host.guest_http import GuestHttp

    return GuestHttp(target.https, context, host=target.host, sockets=sockets)


class _Interview:
    """The HTTPS part of a round."""

    def __init__(self, target: ProbeTarget, order: RoundOrder, answered: asyncio.Event) -> None:
        self._target = target
        self._order = order
        self._answered = answered
        self._unreachable: NoAnswerError | None = None
        self._status: int | None = None  # of the newest document that was asked for
        self._ends_at = asyncio.get_running_loop().time() + 2 * order.timeout_s

    async def run(self, guest_http: GuestHttp) -> RoundResult:
        guest_http.begin_round()
        boot = await self._read_boot(guest_http)
        containers = await self._read_containers(guest_http)
        metrics = await self._read_metrics(guest_http) if self._order.with_metrics else None
        workload = await self._ask_workload(guest_http)
        at = self._order.now()
        return RoundResult(
            at=at,
            answered=self._answered.is_set(),
            shut=await self._is_shut(),
            observations=(
                _observe_boot(boot),
                _observe_containers(containers),
                *workload,
            ),
            keys=tuple(guest_http.keys),
            boot=boot,
            containers=containers.document if containers else None,
            metrics=metrics,
        )

    async def _is_shut(self) -> bool:
        """Whether nobody listens there any more.

        A refusal says so. QEMU's user-mode network accepts first and closes when the guest has
        refused; a server that listens, and failed in its handshake, would wait for a client that
        says nothing; that is asked of a guest that was up, and of none that is only tried.
        """
        door = self._unreachable.door if self._unreachable else None
        https = self._target.https
        if door is not Door.CLOSED:
            return door is Door.REFUSED
        if not is_loopback(https.address) or self._order.attempt:
            return is_loopback(https.address)
        try:
            async with open_tcp(
                https, timeout_s=self._order.timeout_s, sockets=self._order.sockets
            ) as connection:
                await connection.settle(min(_SHUT_WITHIN_S, self._order.timeout_s))
        except NoAnswerError as error:
            return error.door is not None
        return False

    async def _read_boot(self, guest_http: GuestHttp) -> BootReading | None:
        """None if there is no need to ask."""
        if self._order.booted and not self._order.with_metrics:
            return None
        return judge_boot_stages(await self._read(guest_http, "boot-stages"))

    async def _read_containers(self, guest_http: GuestHttp) -> Reading | None:
        """None of an image that says nothing of containers, and never did in this launch."""
        reading = await self._read(guest_http, "containers")
        if not self._order.tells_containers and tells_nothing(self._status, reading):
            return None
        return judge_containers(reading, self._target.container_names)

    async def _read_metrics(self, guest_http: GuestHttp) -> dict[str, Any] | None:
        access = self._target.metrics_access
        if access is None:
            reading = await self._read(guest_http, "metrics")
        else:
            reading = await self._read(guest_http, "metrics", access.bearer_for)
        return read_metrics(self._status, reading, access)

    async def _read(
        self,
        guest_http: GuestHttp,
        name: str,
        bearer_for: Callable[[str], str | None] = lambda _: None,
    ) -> Reading:
        self._status = None
        try:
            answer = await self._get(
                guest_http, _WELL_KNOWN + name, MAX_BODY_BYTES, bearer_for=bearer_for
            )
            self._status = answer.status
        except NoAnswerError as error:
            return Reading(None, f"{_WELL_KNOWN}{name}: {error}", error.code)
        if answer.status == 200 and answer.ending is not Ending.COMPLETE:
            return Reading(None, f"{_WELL_KNOWN}{name}: {_ENDINGS[answer.ending]}")
        reading = read_document(answer.status, answer.body)
        problem = reading.problem and f"{_WELL_KNOWN}{name}: {reading.problem}"
        return Reading(reading.document, problem)

    async def _ask_workload(self, guest_http: GuestHttp) -> tuple[ProbeResult, ...]:
        """One observation; none where no path of the workload can be asked."""
        path, target = self._target.health_path, self._target
        if path is None:
            return ()
        name = workload_probe(path)
        try:
            answer = await self._get(guest_http, path, _MAX_ANSWER_BYTES, body_wait_s=_BODY_WAIT_S)
        except NoAnswerError as error:
            return (_observe(name, f"{path}: {error}", error.code),)
        asked = Asked(path, named=target.path_named, guarded=target.path_guarded)
        found = judge_workload(asked, answer.status, answer.body)
        if found.unknown:
            return (ProbeResult(name, True, f"{path}: {found.unknown}", unknown=True),)
        problem = found.problem and f"{path}: {found.problem}"
        return (_observe(name, problem, passing=f"HTTP {answer.status}"),)

    async def _get(
        self,
        guest_http: GuestHttp,
        path: str,
        max_bytes: int,
        body_wait_s: float | None = None,
        bearer_for: Callable[[str], str | None] = lambda _: None,
    ) -> HttpAnswer:
        """After a guest that cannot be reached, or floods, the rest of the round is not tried."""
        if self._unreachable is not None:
            raise self._unreachable
        attempt, limit = self._order.attempt, self._order.timeout_s
        if attempt and not self._answered.is_set():
            limit = min(limit, attempt.reach_s)
        left = self._ends_at - asyncio.get_running_loop().time()
        if left <= 0:
            raise NoAnswerError("no time was left in the round")
        try:
            answer = await guest_http.get(
                path,
                timeout_s=min(left, limit),
                max_bytes=max_bytes,
                body_wait_s=body_wait_s,
                bearer_for=bearer_for,
            )
        except NoAnswerError as error:
            if guest_http.flooded or not guest_http.keys:
                self._unreachable = error
            raise
        if attempt and not self._answered.is_set():
            attempt.reached()
        self._answered.set()
        return answer


async def _check_all_tcp(
    target: ProbeTarget, order: RoundOrder, answered: asyncio.Event
) -> list[tuple[Instant, ProbeResult]]:
    """All TCP checks, a few at once, each with the moment of its accepting or failing."""
    if order.attempt:
        await answered.wait()
    if len(target.tcp) == 1:
        return [await _check_tcp(target.tcp[0], order)]
    slots = asyncio.Semaphore(_TCP_AT_ONCE)

    async def check(one: TcpCheck) -> tuple[Instant, ProbeResult]:
        async with slots:
            return await _check_tcp(one, order)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(check(one)) for one in target.tcp]
    return [task.result() for task in tasks]


async def _check_tcp(check: TcpCheck, order: RoundOrder) -> tuple[Instant, ProbeResult]:
    name = tcp_probe(check)
    try:
        async with open_tcp(
            check.endpoint, timeout_s=order.timeout_s, sockets=order.sockets
        ) as connection:
            at = order.now()
            if is_relayed(check):
                await connection.settle(_SETTLE_S)
    except NoAnswerError as error:
        problem = f"port {check.guest_port}: {error}"
        return order.now(), _observe(name, problem, error.code)
    return at, _observe(name, None, passing="accepted")


def is_relayed(check: TcpCheck) -> bool:
    """Whether QEMU's user-mode network, which forwards from this host's loopback, accepts first.

    At its own address a guest accepts itself: there is nothing to be seen by waiting.
    """
    return is_loopback(check.endpoint.address)


def is_loopback(address: str) -> bool:
    """Whether it is one of this host's own: of a guest behind QEMU's user-mode network."""
    return ip_address(address).is_loopback


def _observe_boot(boot: BootReading | None) -> ProbeResult:
    if boot is None:
        return _observe(BOOT_PROBE, None)
    code = "boot_stage_failed" if boot.failed else boot.code or "probe_failed"
    return _observe(BOOT_PROBE, boot.problem, code, decisive=bool(boot.failed))


def _observe_containers(containers: Reading | None) -> ProbeResult:
    if containers is None:
        return _observe(CONTAINERS_PROBE, None, passing="its image says nothing of containers")
    code = containers.code or "container_unhealthy"
    return _observe(CONTAINERS_PROBE, containers.problem, code)


def _observe(
    probe: str,
    problem: str | None,
    code: str = "probe_failed",
    *,
    passing: str = "ok",
    decisive: bool = False,
) -> ProbeResult:
    if problem is None:
        return ProbeResult(probe, True, passing)
    return ProbeResult(probe, False, problem, code, decisive)
