"""The filters of our links: in force, or the link is down. `tap_filter.py` says what passes."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping

from agent.enclaves import tap_filter
from agent.enclaves.filters import Filters, Hook
from agent.enclaves.links import Links, NetLink
from agent.enclaves.network import NetworkError, mac_of
from agent.enclaves.packet_program import Program
from agent.enclaves.tap_egress import Outward
from agent.enclaves.tap_state import Wanted
from agent.host.commands import RunCommand
from agent.host.networks import own_networks
from agent.host.threads import finish_in_thread

_Programs = dict[Hook, Program | None]


class TapGuard:
    """`gated`: our table marks what may pass. `outward`: what they hold guests to if not."""

    def __init__(
        self, wanted: Wanted, *, gated: bool, outward: Outward | None, run: RunCommand
    ) -> None:
        self._wanted = wanted
        self._bridge = wanted.bridge
        self._gated = gated
        self._outward = outward
        self._links = Links(run)
        self._filters = Filters(run)

    async def look_outward(self) -> bool:
        """What the host is on now; whether that is news. Raises NetworkError."""
        if self._outward is None:
            return False
        try:
            found = await finish_in_thread(own_networks, self._bridge)
        except OSError as error:
            raise NetworkError("the host's own networks cannot be read") from error
        before = self._outward
        self._outward = dataclasses.replace(before, own_networks=found)
        return self._outward != before

    async def guard_bridge(self) -> None:
        """Raises NetworkError, with the bridge down."""
        await self._have(self._bridge, self._of_bridge())

    async def guard_tap(self, name: str, address: str) -> None:
        """Raises NetworkError, with the tap down."""
        await self._have(name, self._of_tap(name, address))

    async def guard(self, taps: Mapping[str, str], links: Mapping[str, NetLink]) -> set[str]:
        """Have the bridge and every tap filtered, or down; returns those that were not.

        `taps` are those that are there, with their enclaves' addresses. One look for all of them.
        Raises NetworkError when all that can be filtered are.
        """
        wanted = self._of_bridge()
        for name, address in taps.items():
            wanted |= self._of_tap(name, address)
        changed = {hook.link for hook in await self._filters.differing(wanted)}
        failed: NetworkError | None = None
        unguarded = set()
        for link in sorted(changed):
            own = {hook: program for hook, program in wanted.items() if hook.link == link}
            try:
                await self._have(link, own)
            except NetworkError as error:
                failed = error
                unguarded.add(link)
        down = [name for name in taps if name not in unguarded and not links[name].is_up]
        await self._links.change([f"link set dev {name} up" for name in down])
        if failed is not None:
            raise failed
        return changed

    def _of_tap(self, name: str, address: str) -> _Programs:
        host, subnet = (self._wanted.mac, self._wanted.gateway), self._wanted.subnet
        port = tap_filter.Port(mac_of(address), address, *host, subnet)
        hairpin = self._wanted.hairpin
        return {
            Hook(name, "ingress"): tap_filter.from_guest(port, self._outward),
            Hook(name, "egress"): tap_filter.to_guest(port, gated=self._gated, hairpin=hairpin),
        }

    def _of_bridge(self) -> _Programs:
        gate = tap_filter.to_host(self._wanted.gateway) if self._gated else None
        return {Hook(self._bridge, "ingress"): gate}

    async def _have(self, link: str, wanted: _Programs) -> None:
        """Have these filters in force, as the kernel tells, or the link down."""
        try:
            differing = await self._filters.differing(wanted)
            await self._filters.put({hook: wanted[hook] for hook in differing})
            if differing and await self._filters.differing(wanted):
                raise NetworkError(f"the filter of {link} is not in force")
        except BaseException:
            with contextlib.suppress(NetworkError):
                await self._links.change([f"link set dev {link} down"])
            raise
