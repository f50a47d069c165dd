"""Where a redirect may lead: not to this host or its link, unless the source itself lies there.

What answers there answers to the agent's host, and to nobody who could have been asked instead:
metadata services, the agent's own status port, whatever listens on the loopback.
"""

from __future__ import annotations

import ipaddress
import socket

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052


def scope_of(address: str) -> str | None:
    """`loopback` or `link-local`; None for every other address, and for what is none."""
    try:
        found = _meant(ipaddress.ip_address(address.partition("%")[0]))
    except ValueError:
        return None
    if found.is_loopback or found.is_unspecified:  # the latter leads to the former (ip(7))
        return "loopback"
    return "link-local" if found.is_link_local else None


def _meant(address: _Address) -> _Address:
    """The IPv4 address within one of IPv6 that stands for it."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address


class RedirectResolver(AbstractResolver):
    """Resolves the source's own name as it is; of others only what a redirect may lead to.

    Addresses that are written as such are not asked for here: see `forbids`.
    """

    def __init__(self, source_host: str) -> None:
        self._source_host = source_host
        self._allowed = {scope_of(source_host)}
        self._inner = ThreadedResolver()

    def forbids(self, address: str) -> bool:
        """Whether a redirect may not lead to this address."""
        return scope_of(address) is not None and scope_of(address) not in self._allowed

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """As aiohttp's own. Raises OSError if nothing is left."""
        found = await self._inner.resolve(host, port, family)
        if host == self._source_host:
            self._allowed |= {scope_of(one["host"]) for one in found}
            return found
        left = [one for one in found if not self.forbids(one["host"])]
        if not left:
            raise OSError("a redirect leads to this host itself, or to its link")
        return left

    async def close(self) -> None:
        await self._inner.close()
