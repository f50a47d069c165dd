"""Tells ahead which names of a release's config lie where its guest cannot get."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import Any

from agent.host.threads import finish_in_thread
from agent.model.egress import EgressPolicy, GuestEgress, as_ipv4, parse_allowed
from agent.model.release import Release
from agent.releases.outward import OutwardName, outward_names

_DEADLINE_S = 3.0
_ALLOW = "network.guest_egress_allow"
# A host's addresses, those of IPv6 only where it has no other; none: not known.
Resolve = Callable[[str], Coroutine[Any, Any, Sequence[str]]]


async def resolve_here(host: str) -> Sequence[str]:
    """As this host resolves it; guests may ask another resolver."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return ()
    addresses = dict.fromkeys(str(address[0]) for *_, address in found)
    return tuple(one for one in addresses if ":" not in one) or tuple(addresses)


@dataclass(frozen=True, slots=True)
class EgressForesight:
    """`own_networks` reads those of the host, and may raise OSError: then they are not known."""

    policy: EgressPolicy
    own_networks: Callable[[], Sequence[IPv4Network]]
    resolve: Resolve = resolve_here

    async def warnings(self, release: Release) -> tuple[str, ...]:
        """A sentence for each name that is closed. What cannot be resolved in time has none."""
        names = outward_names(release.config)
        if self.policy.mode is GuestEgress.NONE and not self.policy.allow:
            return tuple(_closed_wholly(one) for one in names)
        try:
            own = await finish_in_thread(self.own_networks)
        except OSError:
            own = ()
        asking: list[asyncio.Task[Sequence[str]]] = [
            asyncio.create_task(self.resolve(one.host)) for one in names
        ]
        if asking:
            _, late = await asyncio.wait(asking, timeout=_DEADLINE_S)
            for task in late:
                task.cancel()
        found: list[str] = []
        for name, task in zip(names, asking, strict=True):
            if task.done() and not task.cancelled():
                found += self._closed(name, task.result(), own)
        return tuple(found)

    def _closed(
        self, name: OutwardName, addresses: Sequence[str], own: Sequence[IPv4Network]
    ) -> Iterator[str]:
        for address in addresses:
            why = self.policy.refusal(address, name.port, own)
            if why is not None:
                is_at = "" if address == name.host else f" is {address} as this host resolves it,"
                yield (
                    f"{name.field}: {name.host}{is_at} closed to guests ({why}): "
                    f"{_remedy(address, name.port)}"
                )
                return


def _remedy(address: str, port: int) -> str:
    """What opens it, where anything does."""
    meant = as_ipv4(address)
    if meant is None:
        return "give it an IPv4 address"
    try:
        parse_allowed(f"{meant}/32:{port}")
    except ValueError:
        return "nothing opens it, name another"
    return f"open {meant}/32:{port} in {_ALLOW} if it is meant"


def _closed_wholly(name: OutwardName) -> str:
    return (
        f"{name.field}: {name.host} cannot be reached by guests (network.guest_egress: none): "
        f"open its address in {_ALLOW} if it is meant"
    )
