"""A TLS guest that makes a document for each nonce that it is asked with; a process of several.

    python -m tests.fakes.evidence_guest COUNT

tells one `Told` as a line of JSON, serves, and ends with its stdin.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import msgspec

from agent.attestation.document import PATH
from simulator.manual_clock import ManualClock
from tests.fakes.attested_guest import Guest
from tests.fakes.snp_chain import NOW
from tests.fakes.tls_guest import Script, TlsGuest, reply

GOOD = Guest()


class Clock(ManualClock):
    """At the time at which the certificates are valid."""

    def __init__(self) -> None:
        super().__init__()
        self.jump_wall((NOW - self.now().wall).total_seconds())


class Served(TlsGuest):
    """Good evidence, or what stands `instead`. `nonces`: those that it was asked with."""

    def __init__(self, guest: Guest = GOOD, *, version: int = 3, **more: Any) -> None:
        super().__init__(**more)
        self.guest = guest.but(spki=self.identity.spki_sha256)
        self.version = version
        self.nonces: list[str] = []
        self.sent: list[bytes] = []
        self.instead: bytes | Script | None = None
        self.answers = _Any(self)  # type: ignore[assignment]


class _Any(dict[str, bytes]):
    """Answers the path of the evidence, whatever the nonce."""

    def __init__(self, served: Served) -> None:
        super().__init__()
        self._served = served

    def __missing__(self, path: str) -> Any:
        before, _, nonce = path.partition("?nonce=")
        assert before == PATH
        served = self._served
        served.nonces.append(nonce)
        if served.instead is not None:
            return served.instead
        guest = served.guest.but(nonce=bytes.fromhex(nonce))
        served.sent.append(guest.v3() if served.version == 3 else guest.v2())
        return reply(200, served.sent[-1])


class Told(msgspec.Struct, frozen=True):
    """Where the guests are, their key, and the root of the processor that they have."""

    ports: list[int]
    spki_sha256: str
    root: str


async def main(count: int) -> None:
    guests = [Served() for _ in range(count)]
    ports = [(await guest.start()).port for guest in guests]
    told = Told(ports, guests[0].identity.spki_sha256, GOOD.amd.root_spki_sha256)
    print(msgspec.json.encode(told).decode(), flush=True)
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
