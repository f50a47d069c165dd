"""The session with the coordinator: a report soon after a change, else every interval.

Nothing in the agent waits for it, and it holds nothing up: with the coordinator away for any time
the agent goes on as it was, and what happened meanwhile waits in the outbox.

    connected ──report not answered──► away ──full jitter, longer each time──► report ──► connected
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import random
from collections.abc import Callable

from agent.errors import AgentError, describe
from agent.host.clock import Clock
from agent.host.wake import Wake
from agent.link.address import address_towards
from agent.link.client import AwayError, CoordinatorClient, UntrustedError
from agent.link.outbox import Outbox
from agent.link.prefetch import Prefetch
from agent.link.report import Reports
from agent.model.clock import Instant
from agent.pki.facts import BLIND
from agent.pki.keeper import FleetCertificates, Problems
from agent.pki.names import coordinator_uri
from agent.store.port import Store, StoreError
from agent.updates.admission.audit import highest_epoch, see_epoch
from agent.updates.errors import StaleEpochError
from agent.wire.host_views import CoordinatorView
from agent.wire.report import ReportAnswer

log = logging.getLogger(__name__)

_SETTLE_S = 0.05  # changes come in swarms: one report for a swarm
_BACKOFF_S = 0.5
_LONGEST_BACKOFF_S = 30.0
_TELL_AFTER_S = 30.0
_AWAY, _RESTORED, _CHAIN = "link/away", "link/restored", "link/chain"


class ChainBehindError(AgentError):
    """The coordinator has more events of this host than the host: its store was replaced."""

    @property
    def code(self) -> str:
        return "event_chain_behind"


class Session:
    """One a daemon. `run` is its only task."""

    def __init__(
        self,
        url: str,
        interval_s: float,
        *,
        trust: FleetCertificates,
        store: Store,
        clock: Clock,
        changed: Wake,
        reports: Reports,
        outbox: Outbox,
        prefetch: Prefetch,
        problems: Problems,
        rpc_url: Callable[[str | None], str | None],
    ) -> None:
        self._url = url
        self._interval_s = interval_s
        self._trust = trust
        self._store = store
        self._clock = clock
        self._changed = changed
        self._reports = reports
        self._outbox = outbox
        self._prefetch = prefetch
        self._problems = problems
        self._rpc_url = rpc_url
        self._client: CoordinatorClient | None = None
        self._path = f"/v1/agents/{trust.host_id}/report"
        self._address: str | None = None
        self._failures = 0
        self._told_error: str | None = None
        self._begun = clock.now()
        self._reported_at: Instant | None = None
        self._expires_at: Instant | None = None

    @property
    def view(self) -> CoordinatorView:
        """As `/status` shows it."""
        expires, now = self._expires_at, self._clock.now()
        lives = expires is not None and not now.reached(expires)
        return CoordinatorView(
            configured=True,
            connected=lives and self._failures == 0,
            last_report_at=_shown(self._reported_at, now),
            session_expires_at=_shown(expires, now),
            outbox=self._outbox.waiting,
        )

    async def run(self) -> None:
        """Report, for ever."""
        try:
            while True:
                seen = self._changed.count
                if await self._report():
                    self._failures = 0
                    await self._rest(seen)
                else:
                    self._failures += 1
                    await asyncio.sleep(backoff_s(self._failures))
        finally:
            await self._hang_up()

    async def _report(self) -> bool:
        """Whether it was told and believed."""
        try:
            client = await self._connected()
            made = await self._reports.make(self._rpc_url(self._address))
            answer = await client.send("PUT", self._path, made.body, ReportAnswer)
            await self._believe(answer)
        except (AwayError, StoreError, StaleEpochError, ChainBehindError) as error:
            await self._hang_up()
            self._tell(error)
            return False
        self._reports.told(made, answer)
        self._prefetch.want(answer.wanted_tags)
        if self._failures or self._reported_at is None:
            log.info("connected to the coordinator", extra={"epoch": answer.epoch})
        self._told_error = None
        self._reported_at = self._clock.now()
        self._expires_at = self._reported_at.plus(answer.session_ttl_s)
        for key in (_AWAY, _RESTORED, _CHAIN):
            self._problems.clear_problem(key)
        return True

    async def _believe(self, answer: ReportAnswer) -> None:
        """First who it is: a coordinator of the past must not take events off the outbox."""
        if answer.epoch != await self._store.read(highest_epoch):
            actor = coordinator_uri(self._trust.tls.trust_domain)
            await self._store.transact(lambda tx: see_epoch(tx, answer.epoch, actor))
        if not await self._outbox.acknowledge(answer.events_acknowledged):
            raise ChainBehindError(
                f"the coordinator has events of this host up to {answer.events_acknowledged}, "
                "which this host never wrote: its state directory was replaced or restored"
            )

    async def _rest(self, seen: int) -> None:
        """Until there is news, or the interval is over."""
        await asyncio.sleep(_SETTLE_S)
        loop = asyncio.get_running_loop()
        until = loop.time() + self._interval_s * random.uniform(0.8, 1.0)  # noqa: S311 - jitter
        while not await self._reports.news():
            count = await self._changed.beyond(seen, max(0.0, until - loop.time()))
            if count == seen:
                return
            seen = count
            await asyncio.sleep(_SETTLE_S)

    async def _connected(self) -> CoordinatorClient:
        material = self._trust.material
        if material is None:
            await self._hang_up()
            raise AwayError("this agent has no certificate yet")
        if material.facts.blind(self._clock.now().wall):  # a kept connection is not verified again
            await self._hang_up()
            raise UntrustedError(BLIND)
        if self._client is None or self._client.tls is not material.client:
            await self._hang_up()
            self._client = CoordinatorClient(self._url, material.client)
            self._address = await address_towards(self._url)
        return self._client

    async def _hang_up(self) -> None:
        if self._client is not None:
            client, self._client = self._client, None
            await client.close()

    def _tell(self, error: AgentError) -> None:
        """The log at once; a problem once it lasts, or at once too if it needs a person."""
        if error.code != self._told_error:
            self._told_error = error.code
            log.warning("not connected to the coordinator: %s", describe(error))
        if isinstance(error, StaleEpochError):
            self._problems.raise_problem(
                _RESTORED,
                code="coordinator_restored",
                severity="error",
                detail=f"the coordinator says epoch {error.epoch}, but this host has seen "
                f"{error.highest}: it was restored from an old backup, or is another one",
                mend="if it is the right one: enclave-agent coordinator-epoch reset",
            )
        elif isinstance(error, ChainBehindError):
            self._problems.raise_problem(
                _CHAIN,
                code=error.code,
                severity="error",
                detail=str(error),
                mend="have the coordinator forget the events of this host, or rename the host",
            )
        elif isinstance(error, UntrustedError) or self._away_s() > _TELL_AFTER_S:
            self._problems.raise_problem(
                _AWAY,
                code=error.code,
                severity="warning",
                detail=f"no session with the coordinator at {self._url}: {describe(error)}",
                mend="nothing here waits for it; see to the network, the coordinator, or its name",
            )

    def _away_s(self) -> float:
        return self._clock.now().since(self._reported_at or self._begun) or 0.0


def backoff_s(failures: int) -> float:
    """Full jitter: anything up to a bound that doubles, so that a fleet does not come as one."""
    bound = min(_LONGEST_BACKOFF_S, _BACKOFF_S * 2.0 ** min(failures, 16))
    return random.uniform(0.0, bound)  # noqa: S311 - jitter


def _shown(instant: Instant | None, now: Instant) -> dt.datetime | None:
    return None if instant is None else instant.shown(now)
