"""Keeps our table and forwarding as they should be, whoever changes them; tells of what happens.

Heard of from the kernel, mended where it is ours, told as a problem with the remedy where it is
not. Nothing is looked at while nothing changes, but for a look now and then in case the kernel
could not tell.
"""

from __future__ import annotations

import asyncio
import logging
import time

from agent.errors import describe
from agent.host.network_news import KIND, NetworkNews, NetworkProblem
from agent.host.pace import Pace
from agent.model.event import EventDraft
from agent.model.ids import DeploymentName
from agent.traffic.foreign_watch import ForeignRules
from agent.traffic.nftables import Mended, NftablesTraffic
from agent.traffic.port import TrafficError
from agent.traffic.ruleset_news import News, RulesetNews

log = logging.getLogger(__name__)

_WATCHER, _RULES, _OURS = "data plane", "rules", "table"
_AT_THE_LATEST_S = 300.0
_WHILE_WRONG_S = 10.0
_AGAIN_S = 1.0
_SHARE = 20  # others' rules: the time between two looks, in looks
_SETTLE_S = 0.05
_EACH = 8  # deployments with an event of their own; of more there is one for all


class NftablesWatch:
    """One task's."""

    def __init__(self, traffic: NftablesTraffic, foreign: ForeignRules, news: NetworkNews) -> None:
        self._traffic = traffic
        self._foreign = foreign
        self._news = news
        self._heard = RulesetNews()
        self._pace = Pace()
        self._routes_for_others: bool | None = None
        self._foreign_not_before = 0.0
        self._owed = News.OURS | News.OTHERS

    async def run(self) -> None:
        """For ever. Raises OSError where the kernel tells no news."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._heard.run())
            tasks.create_task(self._keep())

    async def _keep(self) -> None:
        while True:
            pause = await self._look()
            await asyncio.sleep(pause)
            news = await self._heard.next(self._timeout())
            if not news and not self._owed:
                news = News.OURS | News.OTHERS
            if news:
                await asyncio.sleep(_SETTLE_S)  # what comes in one go is looked at once
            self._owed |= news | await self._heard.next(0)

    def _timeout(self) -> float:
        """How long to wait for news. What is owed waits for no more than its turn."""
        if News.OURS in self._owed:
            return 0.0
        if self._owed:
            return max(0.0, self._foreign_not_before - time.monotonic())
        return _WHILE_WRONG_S if self._news.problems else _AT_THE_LATEST_S

    async def _look(self) -> float:
        """At what there is reason to look at; how long to wait before the next."""
        pause = 0.0
        try:
            if News.OURS in self._owed:
                pause = await self._mend()
                self._owed &= ~News.OURS
            if News.OTHERS in self._owed and time.monotonic() >= self._foreign_not_before:
                self._news.show(_RULES, await self._foreign.look())
                self._foreign_not_before = time.monotonic() + self._foreign.took_s * _SHARE
                self._owed &= ~News.OTHERS
                self._news.stirred.notify()
        except TrafficError as error:
            self._fail(error)
            return _AGAIN_S
        self._news.show(_WATCHER, {})
        return pause

    async def _mend(self) -> float:
        mended = await self._traffic.mend()
        repaired = self._tell(mended)
        self._tell_of_forwarding(mended)
        return self._pace.after_repair() if repaired else 0.0

    def _tell(self, mended: Mended) -> bool:
        """Whether there was anything to mend."""
        since, self._heard.since = self._heard.since, None
        after = f" after {time.monotonic() - since:.2f} s" if since is not None else ""
        if mended.rules or mended.deployments:
            self._tell_of_rules(mended, f"put back{after}")
        for table in mended.former_tables:
            reason = f"table {table} of an earlier configuration was there again; removed{after}"
            self._news.repaired("data_plane", _repaired(KIND, None, reason))
        if mended.turned_on:
            links = ", ".join(mended.turned_on)
            log.warning("forwarding was turned off; it was put back", extra={"links": links})
            reason = f"forwarding of IPv4 was turned off on {links}; put back{after}"
            self._news.repaired("forwarding", _repaired(KIND, None, reason))
        return bool(mended.rules or mended.deployments or mended.turned_on)

    def _tell_of_rules(self, mended: Mended, after: str) -> None:
        what = "its rules" if mended.rules else "where its listeners lead"
        names = ", ".join(mended.deployments)
        log.warning(
            "the data plane was changed by another; it was put back",
            extra={"what": what, "deployments": names},
        )
        reason = f"another program changed our table in the kernel ({what}); {after}"
        if 0 < len(mended.deployments) <= _EACH:
            for name in mended.deployments:
                self._news.repaired("data_plane", _repaired("data_plane", name, reason))
        else:
            reason += f"; of {names}" if names else ""
            self._news.repaired("data_plane", _repaired(KIND, None, reason))

    def _tell_of_forwarding(self, mended: Mended) -> None:
        """Whether the host is a router is for others to say: then nothing is fenced any more."""
        before, now = self._routes_for_others, mended.routes_for_others
        self._routes_for_others = now
        if before is None or before is now:
            return
        if now:
            reason = (
                "net.ipv4.conf.all.forwarding was turned on: this host forwards for others now, "
                "and what comes in by its other links is not kept from that any more"
            )
        else:
            reason = (
                "net.ipv4.conf.all.forwarding was turned off: this host forwards to and from "
                "guests alone"
            )
        log.warning("forwarding changed", extra={"why": reason})
        self._news.noticed(EventDraft(kind=KIND, to="router" if now else "host", reason=reason))

    def _fail(self, error: TrafficError) -> None:
        known = self._news.problems.get(_OURS)
        problem = NetworkProblem(
            code="traffic_unavailable",
            severity="error",
            detail=f"the data plane cannot be looked at or put back: {describe(error)}",
            mend="see that nft works on this host and the agent has CAP_NET_ADMIN; it is tried "
            "again every second",
        )
        if known != problem:
            log.error("data plane not in order", extra={"error": describe(error)})
        self._news.show(_WATCHER, {_OURS: problem})


def _repaired(kind: str, deployment: DeploymentName | None, reason: str) -> EventDraft:
    return EventDraft(
        kind=kind, deployment=deployment, from_="changed", to="repaired", reason=reason
    )
