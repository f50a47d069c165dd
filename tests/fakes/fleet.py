"""A fleet for tests: an authority, its members, contexts to connect with, and a bare peer."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import ssl
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from agent.config import TlsConfig
from agent.pki.authority import Authority, new_key, pem_of
from agent.pki.keeper import FleetCertificates
from agent.pki.names import coordinator_uri, host_uri, observer_uri

DOMAIN = "fleet.test"
HOST = "tests"  # the host id of the daemons of tests
_numbers = itertools.count()
RESET = (ConnectionError, ssl.SSLError, asyncio.IncompleteReadError)


@dataclass(frozen=True)
class Member:
    """A certificate and its key, in files."""

    certificate: x509.Certificate
    pem: Path
    key: Path


@dataclass
class Pki:
    """One authority in a directory, made unless it is there."""

    directory: Path
    domain: str = DOMAIN
    authority: Authority = field(init=False)

    def __post_init__(self) -> None:
        there = (self.directory / "ca.key").exists()
        self.authority = (
            Authority.open(self.directory)
            if there
            else Authority.create(self.directory, self.domain)
        )

    @property
    def ca(self) -> Path:
        return self.directory / "ca.pem"

    @property
    def crl(self) -> Path:
        return self.directory / "crl.pem"

    def member(self, uri: str | None, *, days: float = 1, **more: tuple[str, ...]) -> Member:
        key, stem = new_key(), self.directory / f"member{next(_numbers)}"
        certificate = self.authority.issue(key.public_key(), uri, days=days, **more)
        pem, key_file = stem.with_suffix(".pem"), stem.with_suffix(".key")
        pem.write_bytes(certificate.public_bytes(Encoding.PEM))
        key_file.touch(0o600)
        key_file.write_bytes(pem_of(key))
        return Member(certificate, pem, key_file)

    def coordinator(self, **more: float) -> Member:
        return self.member(coordinator_uri(self.domain), **more)

    def observer(self) -> Member:
        return self.member(observer_uri(self.domain))

    def host(self, host_id: str = HOST, **more: float) -> Member:
        return self.member(host_uri(self.domain, host_id), **more)

    def revoke(self, member: Member) -> None:
        self.authority.revoke(member.certificate.serial_number)
        self.authority.publish_crl()

    def tls(self, host: Member | None = None) -> TlsConfig:
        """What an agent of this fleet is configured with."""
        own = host or self.host()
        return TlsConfig(
            certificate=own.pem, key=own.key, ca=self.ca, crl=self.crl, trust_domain=self.domain
        )

    def section(self, host: Member | None = None) -> dict[str, str]:
        """The same, for a configuration file."""
        tls = self.tls(host)
        return {name: str(getattr(tls, name)) for name in tls.__struct_fields__}

    def context(self, member: Member | None, *, server: bool = False) -> ssl.SSLContext:
        """To connect, or to serve, as a member; with None as nobody."""
        kind = ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT
        context = ssl.SSLContext(kind)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(self.ca)
        if member is not None:
            context.load_cert_chain(member.pem, member.key)
        return context


async def bytes_for(
    context: ssl.SSLContext | None, data: bytes, port: int, come_from: str = "127.0.0.1"
) -> bytes:
    """What a peer is sent that says this; b'' if the connection just ends."""
    got = b""
    with contextlib.suppress(*RESET):
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=context, local_addr=(come_from, 0)
        )
        try:
            writer.write(data)
            async with asyncio.timeout(30):
                got = await reader.read()
        finally:
            writer.close()
            with contextlib.suppress(*RESET):
                await writer.wait_closed()
    return got


async def first_read(trust: FleetCertificates) -> None:
    """Have its certificates: the process that reads them is given up on a machine that is slow to
    start it, as the first test of a run meets one.
    """
    async with asyncio.timeout(100):
        while trust.material is None:
            await trust.look()
            await asyncio.sleep(0.05)


class NotedProblems:
    """Implements `agent.pki.keeper.Problems`."""

    def __init__(self) -> None:
        self.codes: dict[str, str] = {}
        self.details: dict[str, str] = {}

    def raise_problem(self, key: str, *, code: str, severity: str, detail: str, mend: str) -> bool:
        assert severity in ("warning", "error")
        assert mend
        news = self.details.get(key) != detail
        self.codes[key], self.details[key] = code, detail
        return news

    def clear_problem(self, key: str) -> None:
        self.codes.pop(key, None)
        self.details.pop(key, None)
