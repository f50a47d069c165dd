"""What is known of the fleet's certificates, without the library that read them. Pure.

Issuers and authorities are named by SHA-256 (hex) of their DER, serial numbers by hex digits.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping

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


class ListMark(msgspec.Struct, frozen=True, kw_only=True):
    """Which list of revoked certificates it is: its number (RFC 5280, section 5.2.3), its date."""

    number: int | None
    since: dt.datetime

    def before(self, other: ListMark) -> bool:
        """Whether it is an earlier list than the other one of the same authority."""
        if self.number is not None and other.number is not None and self.number != other.number:
            return self.number < other.number
        return self.since < other.since


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """Of all files at one moment, checked together.

    `since` and `until`: the life of the own certificate. `revoked`: serial numbers by issuer.
    `crl_until`: when the first list expires; None without lists. `keys`: of the authorities;
    `lists`: the newest list that each of them signed. Both by SHA-256 of the public key.
    """

    uri: str
    since: dt.datetime
    until: dt.datetime
    authorities: frozenset[str]
    revoked: dict[str, frozenset[str]] = {}
    crl_since: dt.datetime | None = None
    crl_until: dt.datetime | None = None
    keys: frozenset[str] = frozenset()
    lists: dict[str, ListMark] = {}

    def newest(self, before: Mapping[str, ListMark]) -> dict[str, ListMark]:
        """The newest lists after these were read, of the authorities that are trusted now.

        Raises TrustError if one of them is older than what was read before, or is gone.
        """
        for key in before.keys() & self.keys:
            if key not in self.lists:
                raise TrustError("crl", "a list that was read before is not in it any more")
            if self.lists[key].before(before[key]):
                raise TrustError("crl", "a list in it is older than one that was read before")
        return self.lists

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
