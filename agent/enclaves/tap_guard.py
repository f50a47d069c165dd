"""The filters of our links: in force, or the link is down. `tap_filter.py` says what passes."""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Mapping

from agent.enclaves import tap_filter
from agent.enclaves.filters import Filters, Hook
from agent.enclaves.links import Links, NetLink
from agent.enclaves.network import NetworkError, mac_of
from agent.enclaves.packet_program import Program
from agent.host.commands import RunCommand

_Programs = dict[Hook, Program | None]


class TapGuard:
    """`mac` and `gateway` are the bridge's. `gated`: our table marks what may pass."""

    def __init__(
        self,
        bridge: str,
        mac: str,
        gateway: str,
        subnet: ipaddress.IPv4Network,
        *,
        gated: bool,
        run: RunCommand,
    ) -> None:
        self._bridge = bridge
        self._mac = mac
        self._gateway = gateway
        self._subnet = subnet
        self._gated = gated
        self._links = Links(run)
        self._filters = Filters(run)

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
        port = tap_filter.Port(mac_of(address), address, self._mac, self._gateway, self._subnet)
        return {
            Hook(name, "ingress"): tap_filter.from_guest(port),
            Hook(name, "egress"): tap_filter.to_guest(port, gated=self._gated),
        }

    def _of_bridge(self) -> _Programs:
        gate = tap_filter.to_host(self._gateway) if self._gated else None
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
