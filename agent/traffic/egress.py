"""Keeps the egress table in the kernel as the policy and the host's networks are.

It stays there without the agent. It is made before the table of the routes (`nftables.py`), which
lets out only what this one marks; it is looked at every few seconds, made anew where somebody
changed it, and told of new networks of the host's within a moment.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from ipaddress import IPv4Network

from agent.host.commands import CommandError, CompletedCommand, RunCommand, run_command
from agent.host.netlink import ROUTE, Netlink
from agent.host.networks import own_networks
from agent.host.threads import finish_in_thread
from agent.model.egress import Refusal
from agent.traffic.egress_rules import EgressRules
from agent.traffic.egress_view import EgressView, read
from agent.traffic.port import TrafficError

log = logging.getLogger(__name__)
LOOK_EVERY_S = 10.0
_NETWORKS = (1, 5, 7)  # RTNLGRP_LINK, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV4_ROUTE


class EgressTable:
    """One table of our own, of family inet."""

    def __init__(self, rules: EgressRules, run: RunCommand = run_command) -> None:
        self._rules = rules
        self._run = run
        self._followed: tuple[IPv4Network, ...] | None = None
        self._lock = asyncio.Lock()

    def removal(self) -> str:
        """Statements that leave nothing of it."""
        return self._rules.removal()

    async def ensure(self) -> EgressView:
        """Have it in the kernel, for the networks that the host has now. Raises TrafficError."""
        async with self._lock:
            view = await self._look()
            if view is not None and view.intact:
                self._followed = view.own_networks
                await self._follow()
                return view
            networks = await self._networks()
            await self._commit(self._rules.text(networks))
            self._followed = networks
        words = {"policy": str(self._rules.policy.mode)}
        if view is None:
            log.info("egress table made", extra=words)
        else:
            log.warning("egress table was another, made anew", extra=words)
        return EgressView(intact=True, own_networks=networks)

    async def watch(self, show: Callable[[tuple[Refusal, ...]], None]) -> None:
        """Keep it so for ever, and show what it refused, the most frequent first.

        Raises TrafficError when it cannot; to be begun again then.
        """
        next_look = 0.0
        with Netlink(ROUTE, _NETWORKS) as news:
            while True:
                if time.monotonic() < next_look:
                    async with self._lock:
                        await self._follow()
                else:
                    next_look = time.monotonic() + LOOK_EVERY_S
                    view = await self.ensure()
                    show(view.refused)
                await news.heard(LOOK_EVERY_S)

    async def _follow(self) -> None:
        networks = await self._networks()
        if networks != self._followed:
            await self._commit(self._rules.following(networks))
            self._followed = networks

    async def _networks(self) -> tuple[IPv4Network, ...]:
        try:
            return await finish_in_thread(own_networks, self._rules.bridge)
        except OSError as error:
            raise TrafficError("the host's own networks cannot be read") from error

    async def _look(self) -> EgressView | None:
        """None: there is no such table."""
        listed = await self._nft(["nft", "-j", "list", "table", "inet", self._rules.table])
        if listed.status != 0:
            if b"No such file or directory" in listed.stderr:
                return None
            raise TrafficError(f"nft does not list the egress table: {listed.complaint}")
        return read(listed.stdout, self._rules)

    async def _commit(self, text: str) -> None:
        done = await self._nft(["nft", "-f", "-"], stdin=text.encode())
        if done.status != 0:
            raise TrafficError(f"nft refused the egress table: {done.complaint}")

    async def _nft(self, argv: list[str], stdin: bytes = b"") -> CompletedCommand:
        try:
            return await self._run(argv, stdin=stdin)
        except CommandError as error:
            raise TrafficError("nft did not do its work") from error
