"""Keeps the egress table in the kernel as the policy and the host's networks are.

It stays there without the agent. Its owner beside this is `nftables.py`, which makes it together
with the table of the routes; here it is looked at every few seconds, made anew where somebody
changed it, and told of new networks of the host's within a moment.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from ipaddress import IPv4Network

from agent.host.commands import CommandError, CompletedCommand, RunCommand, run_command
from agent.host.kernel_news import NETWORKS, KernelNews
from agent.host.networks import own_networks
from agent.host.threads import finish_in_thread
from agent.model.egress import Refusal
from agent.traffic.egress_rules import EgressRules
from agent.traffic.egress_view import EgressView, read
from agent.traffic.port import TrafficError

log = logging.getLogger(__name__)
LOOK_EVERY_S = 10.0


class EgressTable:
    """One table of our own, of family inet."""

    def __init__(self, rules: EgressRules, run: RunCommand = run_command) -> None:
        self._rules = rules
        self._run = run
        self._followed: tuple[IPv4Network, ...] | None = None

    async def text(self) -> str:
        """Statements that make all of it anew, for a transaction of the caller's."""
        self._followed = None
        return self._rules.text(await self._networks())

    def removal(self) -> str:
        """Statements that leave nothing of it."""
        return self._rules.removal()

    async def ensure(self) -> EgressView:
        """Have it in the kernel, for the networks that the host has now. Raises TrafficError."""
        view = await self._look()
        if view.intact:
            self._followed = view.own_networks
            await self._follow()
            return view
        await self._commit(await self.text())
        log.warning("egress table made anew", extra={"policy": str(self._rules.policy.mode)})
        return EgressView()

    async def watch(self, show: Callable[[tuple[Refusal, ...]], None]) -> None:
        """Keep it so for ever, and show what it refused, the most frequent first.

        Raises TrafficError when it cannot; to be begun again then.
        """
        next_look = 0.0
        with KernelNews(NETWORKS, at_the_latest_s=LOOK_EVERY_S) as news:
            while True:
                if time.monotonic() < next_look:
                    await self._follow()
                else:
                    next_look = time.monotonic() + LOOK_EVERY_S
                    view = await self.ensure()
                    show(view.refused)
                await news.changed()

    async def _follow(self) -> None:
        """What is followed may have been made anew meanwhile, for networks that are as new."""
        networks = await self._networks()
        if networks != self._followed:
            await self._commit(self._rules.following(networks))
            self._followed = networks

    async def _networks(self) -> tuple[IPv4Network, ...]:
        try:
            return await finish_in_thread(own_networks, self._rules.bridge)
        except OSError as error:
            raise TrafficError("the host's own networks cannot be read") from error

    async def _look(self) -> EgressView:
        listed = await self._nft(["nft", "-j", "list", "table", "inet", self._rules.table])
        if listed.status != 0:
            if b"No such file or directory" in listed.stderr:
                return EgressView()
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
