"""Hears from the kernel that packet filters or forwarding were changed, by whomever.

Rules of nftables (and so of iptables-nft) come by one netlink group; forwarding, addresses and the
default route by others. The elements of other programs' sets change all the time and are none of
our business. Of iptables-legacy nobody is told: its table is read each second, where it is there.

Source of the formats: <linux/netfilter/nfnetlink.h>, <linux/netfilter/nf_tables.h>,
<linux/netconf.h>, rtnetlink(7).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from enum import Flag, auto

from agent.host.netlink import NETFILTER, ROUTE, Message, Netlink, attributes, text
from agent.host.wake import Wake
from agent.traffic.legacy_tables import legacy_state
from agent.traffic.nftables_kernel import has_to_do_with_agents

_NFTABLES = 7  # NFNLGRP_NFTABLES
_IPV4_IFADDR, _IPV4_ROUTE, _IPV4_NETCONF = 5, 7, 24  # RTNLGRP_…
_SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
_GENERATION = 15  # NFT_MSG_NEWGEN
_ELEMENTS = (12, 14)  # NFT_MSG_NEWSETELEM, NFT_MSG_DELSETELEM
_NEW_ROUTE, _DEL_ROUTE, _NEW_NETCONF = 24, 25, 80  # RTM_…
_RTA_DST, _ROUTE_HEADER, _NF_HEADER = 1, 12, 4
_TABLE = 1  # NFTA_…_TABLE, NFTA_TABLE_NAME
_LEGACY_EVERY_S = 1.0
_LEGACY_SHARE = 4000  # the time between two readings, in readings
_LONG_S = 3600.0


class News(Flag):
    """What may have changed."""

    NONE = 0
    OURS = auto()  # a table of an agent, or whether links forward
    OTHERS = auto()  # tables of other programs


def of_rules(message: Message) -> News:
    """What a message of nftables is about."""
    kind = message.kind & 0xFF
    if message.kind >> 8 != _SUBSYSTEM or kind == _GENERATION:
        return News.NONE
    table = text(attributes(message.body, _NF_HEADER).get(_TABLE))
    if has_to_do_with_agents(table):
        return News.OURS
    return News.NONE if kind in _ELEMENTS else News.OTHERS


def of_links(message: Message) -> News:
    """Whatever else may change which links are to forward: all but routes to somewhere."""
    if message.kind == _NEW_NETCONF:
        return News.OURS
    if message.kind in (_NEW_ROUTE, _DEL_ROUTE):
        if _RTA_DST in attributes(message.body, _ROUTE_HEADER):
            return News.NONE
        return News.OURS | News.OTHERS
    return News.OURS | News.OTHERS


class RulesetNews:
    """`run` hears, `next` tells what came since it was last asked."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._wake = Wake()
        self._seen = 0
        self._pending = News.NONE
        self._first = 0.0
        self.since: float | None = None  # when the first of what `next` told was heard

    async def run(self) -> None:
        """For ever. Raises OSError where the kernel does not tell."""
        with (
            Netlink(NETFILTER, (_NFTABLES,)) as rules,
            Netlink(ROUTE, (_IPV4_IFADDR, _IPV4_ROUTE, _IPV4_NETCONF)) as links,
        ):
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._hear(rules, of_rules))
                tasks.create_task(self._hear(links, of_links))
                tasks.create_task(self._look_at_legacy())

    async def next(self, timeout_s: float) -> News:
        """What may have changed; nothing after that time."""
        self._seen = await self._wake.beyond(self._seen, timeout_s)
        news, self._pending = self._pending, News.NONE
        if news:
            self.since = self._first if self.since is None else min(self._first, self.since)
        return news

    async def _hear(self, netlink: Netlink, about: Callable[[Message], News]) -> None:
        while True:
            heard = await netlink.heard(_LONG_S)
            if heard is None:
                self._tell(News.OURS | News.OTHERS)
                continue
            for message in heard:
                self._tell(about(message))

    async def _look_at_legacy(self) -> None:
        known = legacy_state()
        while True:
            began = self._monotonic()
            state = legacy_state()
            took = self._monotonic() - began
            if state != known:
                known = state
                self._tell(News.OTHERS)
            await asyncio.sleep(max(_LEGACY_EVERY_S, took * _LEGACY_SHARE))

    def _tell(self, news: News) -> None:
        if not news:
            return
        if not self._pending:
            self._first = self._monotonic()
            self._wake.notify()
        self._pending |= news
