"""What the host and its configuration say of where deployments may listen."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from agent.capacity.listen_rules import Door, ListenRules
from agent.config import Config, NetworkMode
from agent.inventory.ssh_server import read_ssh_listeners
from agent.model.addresses import HostAddresses
from agent.model.resources import Listen

_RESOLVE_S = 2.0
_RESOLVED_FOR_S = 300.0
_HTTPS_PORT = 443
ReadListenRules = Callable[[HostAddresses | None], Awaitable[ListenRules]]


async def no_listen_rules(_: HostAddresses | None) -> ListenRules:
    """Of a host of which nothing is to be known."""
    return ListenRules()


class ListenRulesReader:
    """`network` is the mode that was chosen."""

    def __init__(self, config: Config, network: str) -> None:
        self._config = config
        self._tap = network == NetworkMode.TAP
        self._coordinator = _Coordinator(config.coordinator.url)

    async def __call__(self, addresses: HostAddresses | None) -> ListenRules:
        """The rules of this moment, on a host with these addresses."""
        section, network = self._config.listen, self._config.network
        ssh = await asyncio.to_thread(read_ssh_listeners)
        coordinator = await self._coordinator.listeners(addresses)
        return ListenRules(
            addresses=addresses,
            floating=section.floating,
            guests=network.subnet if self._tap else network.loopback_subnet,
            guests_field="network.subnet" if self._tap else "network.loopback_subnet",
            doors=(
                *_agents_own(self._config),
                *(Door(listen=one, whose="this host's SSH server") for one in ssh),
                *(
                    Door(listen=one, whose="the coordinator (coordinator.url)")
                    for one in coordinator
                ),
            ),
        )


def _agents_own(config: Config) -> tuple[Door, ...]:
    """Also what is not open now: the agent must be able to open it at its next start."""
    fields = {
        "listen.status": config.listen.status,
        "listen.rpc": config.listen.rpc,
        "attestation.collateral.listen": config.attestation.collateral.listen,
    }
    return tuple(
        Door(listen=Listen.parse(text), whose=f"the agent itself ({field})")
        for field, text in fields.items()
        if text is not None
    )


class _Coordinator:
    """Where the coordinator listens, as far as that is on this host."""

    def __init__(self, url: str | None) -> None:
        parts = urlsplit(url) if url else None
        self._host = parts.hostname if parts else None
        self._port = (parts.port if parts else None) or _HTTPS_PORT
        self._known: tuple[str, ...] = ()
        self._asked_at: float | None = None

    async def listeners(self, addresses: HostAddresses | None) -> tuple[Listen, ...]:
        if self._host is None or addresses is None:
            return ()
        found = await self._resolved(self._host)
        return tuple(Listen(address=one, port=self._port) for one in found if addresses.has(one))

    async def _resolved(self, host: str) -> tuple[str, ...]:
        """What the name meant last; a resolver that is silent is not asked again at once."""
        now = time.monotonic()
        if self._asked_at is None or now - self._asked_at > _RESOLVED_FOR_S:
            self._asked_at = now
            try:
                async with asyncio.timeout(_RESOLVE_S):
                    found = await asyncio.get_running_loop().getaddrinfo(
                        host, self._port, type=socket.SOCK_STREAM
                    )
            except (OSError, TimeoutError):
                return self._known
            self._known = tuple(sorted({str(where[0]) for *_, where in found}))
        return self._known
