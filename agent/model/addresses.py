"""The addresses that the host takes for its own, as its kernel says at a moment. Pure."""

from __future__ import annotations

import functools
import ipaddress

import msgspec

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class HostAddresses(msgspec.Struct, frozen=True, kw_only=True):
    """Its local table: `local` are prefixes (127.0.0.0/8 is one), `broadcast` are addresses."""

    local: tuple[str, ...] = ()
    broadcast: tuple[str, ...] = ()

    def has(self, address: str) -> bool:
        """Whether what is sent to this address is for this host."""
        return any(is_in(address, prefix) for prefix in self.local)


def is_in(address: str, prefix: str) -> bool:
    """Whether a prefix holds an address; one of the other family does not."""
    return ipaddress.ip_address(address) in network(prefix)


@functools.lru_cache(maxsize=4096)
def network(prefix: str) -> Network:
    """A prefix that was read before. Raises ValueError."""
    return ipaddress.ip_network(prefix)
