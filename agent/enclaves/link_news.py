"""Hears from the kernel (rtnetlink) what is changed of our links, by whomever.

What is told is that something changed, not what: whoever listens looks for itself. What was lost
because too much came counts as news, too. So does a while of silence, in case the kernel could not
tell at all. What is changed of other links is passed over, but for addresses and routes that may
take the guests' own.

Source of the formats: rtnetlink(7), <linux/rtnetlink.h>, <linux/neighbour.h>.
"""

from __future__ import annotations

import asyncio
import ipaddress
import struct
import sys
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from agent.enclaves.network import NetworkError
from agent.enclaves.tap_names import may_be_a_tap
from agent.host.netlink import ROUTE, Message, Netlink, attributes, text

_LINK, _NEIGH, _TC, _IPV4_IFADDR, _IPV4_ROUTE = 1, 3, 4, 5, 7  # RTNLGRP_…
_NEW_LINK, _DEL_LINK = 16, 17  # RTM_…
_NEW_ADDRESS, _DEL_ADDRESS = 20, 21
_NEW_ROUTE, _DEL_ROUTE = 24, 25
_NEW_NEIGH, _DEL_NEIGH = 28, 29
_AF_BRIDGE = 7
_IFLA_IFNAME, _RTA_DST, _NDA_MASTER = 3, 1, 9
_LINK_HEADER, _ROUTE_HEADER, _NEIGH_HEADER = 16, 12, 12
_SETTLE_S = 0.1  # what comes in one go is looked at once
_AT_THE_LATEST_S = 300.0


@dataclass(frozen=True, slots=True)
class Ours:
    """What is to be heard of. `indexes`: of our links, as they were when last looked at.

    `networks`: also whatever changes the networks that the host is on.
    """

    bridge: str
    subnet: ipaddress.IPv4Network
    indexes: frozenset[int] = frozenset()
    networks: bool = False

    def concerns(self, message: Message) -> bool:
        """Whether there is reason to look."""
        kind, body = message
        if self.networks and kind in (_NEW_LINK, _DEL_LINK, _NEW_ROUTE, _DEL_ROUTE):
            return True
        try:
            if kind in (_NEW_LINK, _DEL_LINK):
                return self._link(body)
            if kind in (_NEW_ROUTE, _DEL_ROUTE):
                return self._route(body)
            if kind in (_NEW_NEIGH, _DEL_NEIGH):
                return self._neighbour(body)
            if kind in (_NEW_ADDRESS, _DEL_ADDRESS):
                return True  # they change rarely, and any may take the guests'
            (index,) = struct.unpack_from("=i", body, 4)  # filters and disciplines
        except struct.error:
            return True
        return not self.indexes or index in self.indexes

    def _link(self, body: bytes) -> bool:
        name = text(attributes(body, _LINK_HEADER).get(_IFLA_IFNAME))
        (index,) = struct.unpack_from("=i", body, 4)
        return index in self.indexes or name == self.bridge or may_be_a_tap(name)

    def _route(self, body: bytes) -> bool:
        destination = attributes(body, _ROUTE_HEADER).get(_RTA_DST)
        if destination is None:
            return False
        network = ipaddress.IPv4Network((destination, body[1]), strict=False)
        return network.prefixlen >= self.subnet.prefixlen and network.overlaps(self.subnet)

    def _neighbour(self, body: bytes) -> bool:
        (index,) = struct.unpack_from("=i", body, 4)
        if index in self.indexes:
            return True
        if body[0] != _AF_BRIDGE:
            return False
        master = attributes(body, _NEIGH_HEADER).get(_NDA_MASTER)
        return master is not None and int.from_bytes(master, sys.byteorder) in self.indexes


class LinkNews:
    """Needs a running event loop. To be asked by one task."""

    def __init__(self) -> None:
        groups = (_LINK, _NEIGH, _TC, _IPV4_IFADDR, _IPV4_ROUTE)
        self._netlink = Netlink(ROUTE, groups)

    def __enter__(self) -> Self:
        """Raises NetworkError."""
        try:
            self._netlink.__enter__()
        except OSError as error:
            raise NetworkError(f"the kernel tells no news of links: {error.strerror}") from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._netlink.__exit__(kind, error, trace)

    async def changed(self, ours: Ours) -> None:
        """Return soon after something of ours changed, at the latest after five minutes."""
        loop = asyncio.get_running_loop()
        until = loop.time() + _AT_THE_LATEST_S
        while (left := until - loop.time()) > 0:
            heard = await self._netlink.heard(left)
            if heard is None or any(map(ours.concerns, heard)):
                break
        await asyncio.sleep(_SETTLE_S)
        self._netlink.waiting()  # it was told by the look that follows
