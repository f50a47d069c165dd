"""The peers that are connected over TLS: who may be, how many, and until when.

Whoever was let in is looked at again whenever the certificates were read anew, and every few
seconds: a certificate that was revoked, that has ended, or whose authority is trusted no more
ends its connections, whatever they are doing.
"""

from __future__ import annotations

import datetime as dt
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from agent.api.connection import PeerConnection
from agent.api.roles import Role
from agent.host.paced_log import PacedLog
from agent.pki.names import coordinator_uri, observer_uri
from agent.pki.peer import Peer

if TYPE_CHECKING:
    from agent.pki.keeper import FleetCertificates

_log = PacedLog(logging.getLogger(__name__))
MAX_OPEN = 288
MAX_OPEN_PER_CERTIFICATE = 224
_LOOK_EVERY_S = 5.0

NewConnection = Callable[[Role, Peer, Callable[[PeerConnection], None]], PeerConnection]


class Peers:
    """All of one listener."""

    def __init__(
        self,
        trust: FleetCertificates,
        connect: NewConnection,
        *,
        max_open: int = MAX_OPEN,
        max_open_per_certificate: int = MAX_OPEN_PER_CERTIFICATE,
    ) -> None:
        domain = trust.tls.trust_domain
        self._roles: Mapping[str, Role] = {
            coordinator_uri(domain): Role.COORDINATOR,
            observer_uri(domain): Role.OBSERVER,
        }
        self._trust = trust
        self._connect = connect
        self._max_open = max_open
        self._max_of_one = max_open_per_certificate
        self._open: dict[PeerConnection, frozenset[str]] = {}  # the authorities it came in under
        self._of_one: Counter[bytes] = Counter()

    def __len__(self) -> int:
        return len(self._open)

    def enter(self, peer: Peer) -> PeerConnection | None:
        """Its connection; None if it has no role here, or too many are open."""
        role, material = self._roles.get(peer.uri), self._trust.material
        if role is None or material is None:
            return self._sent_away(peer, "its name has no role")
        if len(self._open) >= self._max_open or self._of_one[peer.mark] >= self._max_of_one:
            return self._sent_away(peer, "too many connections are open")
        connection = self._connect(role, peer, self._leave)
        self._open[connection] = material.facts.authorities
        self._of_one[peer.mark] += 1
        return connection

    async def keep(self) -> None:
        """Look at them again and again, for ever."""
        seen = self._trust.changed.count
        while True:
            seen = await self._trust.changed.beyond(seen, _LOOK_EVERY_S)
            self.look()

    def look(self) -> None:
        """Close those who may not stay.

        If an authority is taken away all are closed: those of the others are let in again.
        """
        material, now = self._trust.material, dt.datetime.now(dt.UTC)
        if material is None:
            return
        facts = material.facts
        for connection, authorities in list(self._open.items()):
            reason = facts.objection(connection.peer, now)
            if reason is None and not authorities <= facts.authorities:
                reason = "an authority is not trusted any more"
            if reason is not None:
                connection.drop(reason)

    def _leave(self, connection: PeerConnection) -> None:
        del self._open[connection]
        mark = connection.peer.mark
        self._of_one[mark] -= 1
        if not self._of_one[mark]:
            del self._of_one[mark]

    def _sent_away(self, peer: Peer, reason: str) -> PeerConnection | None:
        _log.info("peer sent away", extra={"peer": peer.uri, "reason": reason})
        return None
