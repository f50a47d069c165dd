"""Looks at the packet filters of other programs on this host, and says what is wrong with them."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from agent.host.commands import CommandError, RunCommand, run_command
from agent.host.network_news import NetworkProblem
from agent.traffic.foreign_problems import abandoned, problems
from agent.traffic.foreign_rules import chains_of, forwarding_tables
from agent.traffic.legacy_tables import legacy_items
from agent.traffic.listing import understood
from agent.traffic.nftables_kernel import bridge_of, has_to_do_with_agents, is_agents
from agent.traffic.port import TrafficError
from agent.traffic.uplinks import is_link, uplinks


class ForeignRules:
    """A look runs `nft` a few times; tables without a chain of the forward hook are not listed."""

    def __init__(
        self,
        bridge: str,
        subnet: str,
        table: str,
        *,
        run: RunCommand = run_command,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bridge = bridge
        self._guests = ipaddress.IPv4Network(subnet)
        self._table = table
        self._run = run
        self._monotonic = monotonic
        self.took_s = 0.0  # the last look

    async def look(self) -> dict[str, NetworkProblem]:
        """What a person should mend, by a key of its own. Raises TrafficError."""
        began = self._monotonic()
        try:
            with understood("nft"):
                items = await self._items()
                found = problems(
                    chains_of([*items, *legacy_items()]),
                    bridge=self._bridge,
                    guests=self._guests,
                    uplinks=uplinks(self._bridge),
                )
                return found | await self._left_behind()
        finally:
            self.took_s = self._monotonic() - began

    async def _items(self) -> list[Mapping[str, Any]]:
        """Chains and rules of every foreign table that has to do with forwarding."""
        listed = list(await self._list("chains"))
        tables = [one for one in forwarding_tables(listed) if not has_to_do_with_agents(one[1])]
        found: list[Mapping[str, Any]] = []
        for family, name in tables:
            with contextlib.suppress(_GoneError):
                found += await self._list("table", family, name)
        return found

    async def _left_behind(self) -> dict[str, NetworkProblem]:
        tables = [item["table"] for item in await self._list("tables") if "table" in item]
        others = {str(one["name"]) for one in tables if is_agents(str(one["name"]))}
        found = {}
        for name in sorted(others - {self._table}):
            bridge = bridge_of(name)
            if not is_link(bridge):
                found[f"table:{name}"] = abandoned(name, bridge)
        return found

    async def _list(self, *what: str) -> Iterator[Mapping[str, Any]]:
        try:
            done = await self._run(["nft", "-j", "-t", "list", *what])
        except CommandError as error:
            raise TrafficError("nft did not do its work") from error
        if done.status != 0:
            if b"No such file or directory" in done.stderr:
                raise _GoneError(f"nft does not list {' '.join(what)}")
            raise TrafficError(f"nft does not list {' '.join(what)}: {done.complaint}")
        try:
            return iter(json.loads(done.stdout)["nftables"])
        except (ValueError, KeyError) as error:
            said = f"`nft list {' '.join(what)}` printed what is not understood"
            raise TrafficError(said) from error


class _GoneError(TrafficError):
    """It was deleted between two looks."""
