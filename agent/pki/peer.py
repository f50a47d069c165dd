"""The other end of a TLS connection: who it is, told only after its certificate was verified."""

from __future__ import annotations

import datetime as dt
import hashlib
import ssl
from dataclasses import dataclass
from typing import ClassVar

from agent.host.peer_key import issuer_of
from agent.pki.names import peer_uri


@dataclass(frozen=True, slots=True)
class Peer:
    """A verified peer. `uri` is its name, `mark` its certificate's SHA-256; see `facts`."""

    uri: str
    mark: bytes
    issuer: str
    serial: str
    until: dt.datetime


def peer_of(tls: ssl.SSLObject) -> Peer | None:
    """Of a connection whose handshake is over; None if its certificate names nobody."""
    told, der = tls.getpeercert(), tls.getpeercert(binary_form=True)
    uri = peer_uri(told)
    if uri is None or not told or der is None:
        return None
    return Peer(
        uri=uri,
        mark=hashlib.sha256(der).digest(),
        issuer=hashlib.sha256(issuer_of(der)).hexdigest(),
        serial=f"{int(str(told['serialNumber']), 16):x}",
        until=dt.datetime.fromtimestamp(ssl.cert_time_to_seconds(str(told["notAfter"])), dt.UTC),
    )


class NamedPeer(ssl.SSLObject):
    """Ends the handshake with an error if the peer is not the one that is meant.

    So nothing is ever sent to another member of the fleet that happens to listen there.
    """

    wanted: ClassVar[str]

    @staticmethod
    def of(uri: str) -> type[NamedPeer]:
        """The class for one name; `ssl.SSLContext.sslobject_class` takes a class."""
        return type("NamedPeer", (NamedPeer,), {"wanted": uri})

    def do_handshake(self) -> None:
        """As ever, and then the look at the name."""
        super().do_handshake()
        found = peer_uri(self.getpeercert())
        if found != self.wanted:
            raise ssl.SSLCertVerificationError(
                1, f"the peer's certificate says {found or 'no single URI'}, not {self.wanted}"
            )
