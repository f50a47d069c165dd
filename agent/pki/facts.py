"""What is known of the fleet's certificates, without the library that read them. Pure.

Issuers and authorities are named by SHA-256 (hex) of their DER, serial numbers by hex digits.
"""

from __future__ import annotations

import datetime as dt

import msgspec

from agent.errors import AgentError
from agent.pki.peer import Peer

BLIND = "the list of revoked certificates has expired"


class TrustError(AgentError):
    """A file of the fleet's certificates cannot be used. The text begins with its setting."""

    def __init__(self, setting: str, reason: str) -> None:
        super().__init__(f"listen.tls.{setting}: {reason}")
        self.setting = setting
        self.reason = reason

    @property
    def code(self) -> str:
        return "tls_unusable"


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """Of all files at one moment, checked together.

    `since` and `until`: the life of the own certificate. `revoked`: serial numbers by issuer.
    `crl_until`: when the first list expires; None without lists.
    """

    uri: str
    since: dt.datetime
    until: dt.datetime
    authorities: frozenset[str]
    revoked: dict[str, frozenset[str]] = {}
    crl_since: dt.datetime | None = None
    crl_until: dt.datetime | None = None

    def blind(self, now: dt.datetime) -> bool:
        """Whether it is not known any more who was revoked: then nobody is believed."""
        return self.crl_until is not None and now >= self.crl_until

    def ended(self, now: dt.datetime) -> bool:
        """Whether the own certificate is good for nothing any more."""
        return now >= self.until

    def objection(self, peer: Peer, now: dt.datetime) -> str | None:
        """Why a peer that was let in before may not stay; None if it may."""
        if self.blind(now):
            return BLIND
        if peer.serial in self.revoked.get(peer.issuer, ()):
            return "its certificate was revoked"
        if now >= peer.until:
            return "its certificate has expired"
        return None
