"""Where a deployment may listen: on addresses of this host, and on no door of another's. Pure.

A listener that takes what is sent to others (a guest, another machine, a whole network) would
answer in their place; one on an address that no packet is for would be called running and never
be reached.
"""

from __future__ import annotations

import ipaddress

import msgspec

from agent.model.addresses import HostAddresses, is_in
from agent.model.resources import Listen

_THIS_NETWORK = ipaddress.ip_network("0.0.0.0/8")
_RESERVED = ipaddress.ip_network("240.0.0.0/4")


class Door(msgspec.Struct, frozen=True, kw_only=True):
    """A listener that is not for deployments, and whose it is."""

    listen: Listen
    whose: str


class ListenRules(msgspec.Struct, frozen=True, kw_only=True):
    """What is known at a moment. By default nothing is, and any address will do.

    `addresses`: the host's own; None: they could not be read. `floating`: prefixes of addresses
    that come and go (VIPs). `guests`: the guests' subnet, and `guests_field`, which says it.
    """

    addresses: HostAddresses | None = None
    floating: tuple[str, ...] = ()
    guests: str | None = None
    guests_field: str = "network.subnet"
    doors: tuple[Door, ...] = ()

    def fault(self, listen: Listen) -> str | None:
        """Why no deployment may have this listener, with the remedy; None: it may."""
        return (
            _no_address_to_serve(listen)
            or self._others_address(listen)
            or self._others_door(listen)
            or (None if self._is_floating(listen) else self.absence(listen))
        )

    def absence(self, listen: Listen) -> str | None:
        """Why nothing that is sent to it arrives here for now; None: it does, or is not known."""
        if listen.is_wildcard or self.addresses is None or self.addresses.has(listen.address):
            return None
        if self._is_floating(listen):
            return f"{listen.address} is not on this host now (listen.floating has it)"
        return (
            f"{listen.address} is no address of this host: take one of `ip address`, or put it "
            "into listen.floating if it comes and goes"
        )

    def _is_floating(self, listen: Listen) -> bool:
        return any(is_in(listen.address, prefix) for prefix in self.floating)

    def _others_address(self, listen: Listen) -> str | None:
        if listen.is_wildcard:
            return None
        if self.guests is not None and is_in(listen.address, self.guests):
            return (
                f"{listen.address} is in the guests' subnet ({self.guests_field}: {self.guests}): "
                "take an address of the host"
            )
        if self.addresses is not None and listen.address in self.addresses.broadcast:
            return f"{listen.address} is a broadcast address of this host: take one of its own"
        return None

    def _others_door(self, listen: Listen) -> str | None:
        for door in self.doors:
            if listen.overlaps(door.listen):
                return f"{listen} is taken by {door.whose}, at {door.listen}: take another port"
        return None


def _no_address_to_serve(listen: Listen) -> str | None:
    """By the address alone, on any host."""
    address = ipaddress.ip_address(listen.address)
    if listen.is_wildcard:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return f"{address} stands for an IPv4 address: write {address.ipv4_mapped}"
    if address.is_multicast:
        return f"{address} is a multicast address, which takes no connection"
    if address in _RESERVED or address in _THIS_NETWORK:  # the limited broadcast, too
        return f"{address} is reserved and takes no connection: take an address of the host"
    if address.version == 6 and address.is_link_local:
        return f"{address} is link-local, and so no address without its link: take another"
    return None
