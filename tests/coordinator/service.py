"""A small honest coordinator: reports kept, events acknowledged, hosts enrolled and renewed.

    python -m tests.coordinator.service HOME ADDRESS PORT

HOME holds `ledger.db` and the authority's directory `pki`. What a test wants it to be like it says
in the ledger's settings: `epoch`, `session_ttl_s`, `wanted`, `send_inventory`, `certificate_days`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import ssl
import sys
import time
from pathlib import Path
from typing import Any

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from agent.pki.authority import Authority, AuthorityError, new_key, pem_of
from agent.pki.names import coordinator_uri, host_uri, peer_uri
from tests.coordinator.ledger import Ledger


class Service:
    """The handlers, over one ledger and one authority."""

    def __init__(self, home: Path) -> None:
        self.ledger = Ledger(home / "ledger.db")
        self.authority = Authority.open(home / "pki")

    def app(self) -> web.Application:
        app = web.Application(client_max_size=16 << 20)
        app.router.add_put("/v1/agents/{host}/report", self.report)
        app.router.add_post("/v1/agents/enroll", self.enrol)
        app.router.add_post("/v1/agents/renew", self.renew)
        return app

    async def report(self, request: web.Request) -> web.Response:
        host = request.match_info["host"]
        self._only(request, host)
        report = await request.json()
        assert report["host"]["id"] == host
        acknowledged, needed = self.ledger.take(host, report, time.time())
        setting = self.ledger.setting
        withheld = setting("withhold", "")
        return web.json_response(
            {
                "session_ttl_s": float(setting("session_ttl_s", "30")),
                "epoch": int(setting("epoch", "1")),
                "events_acknowledged": 0 if withheld else acknowledged,
                "wanted_tags": json.loads(setting("wanted", "[]")),
                "send_inventory": needed or bool(setting("send_inventory", "")),
                "a_field_of_the_future": True,
            }
        )

    async def enrol(self, request: web.Request) -> web.Response:
        body = await request.json()
        host = body["host"]["id"]
        spki = _spki_of(body["csr_pem"])
        if not self.ledger.spend(body["token"], host, spki, time.time()):
            return _problem(403, "the token is not good, or was used")
        return self._issue(body["csr_pem"], host)

    async def renew(self, request: web.Request) -> web.Response:
        body = await request.json()
        uri = _peer(request) or ""
        host = uri.removeprefix(host_uri(self.authority.trust_domain, ""))
        self._only(request, host)
        return self._issue(body["csr_pem"], host)

    def _issue(self, csr_pem: str, host: str) -> web.Response:
        days = float(self.ledger.setting("certificate_days", "90"))
        uri = host_uri(self.authority.trust_domain, host)
        try:
            certificate = self.authority.sign_request(csr_pem.encode(), uri, days=days)
        except AuthorityError as error:
            return _problem(400, str(error))
        return web.json_response(
            {
                "certificate_pem": certificate.public_bytes(Encoding.PEM).decode(),
                "ca_pem": self.authority.ca_pem().decode(),
                "trust_domain": self.authority.trust_domain,
                "crl_pem": (self.authority.directory / "crl.pem").read_text(),
            }
        )

    def _only(self, request: web.Request, host: str) -> None:
        if _peer(request) != host_uri(self.authority.trust_domain, host):
            raise web.HTTPForbidden


def _peer(request: web.Request) -> str | None:
    assert request.transport is not None
    return peer_uri(request.transport.get_extra_info("ssl_object").getpeercert())


def _spki_of(csr_pem: str) -> str:
    key = x509.load_pem_x509_csr(csr_pem.encode()).public_key()
    return hashlib.sha256(
        key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    ).hexdigest()


def _problem(status: int, detail: str) -> web.Response:
    return web.json_response({"detail": detail}, status=status)


def context(home: Path) -> ssl.SSLContext:
    """A host that is to be enrolled has no certificate yet; every other path asks for its name."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    made.verify_mode = ssl.CERT_OPTIONAL
    made.load_verify_locations(home / "pki/ca.pem")
    made.load_cert_chain(home / "coordinator.pem", home / "coordinator.key")
    return made


async def serve(home: Path, address: str, port: int) -> None:
    runner = web.AppRunner(Service(home).app(), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, address, port, ssl_context=context(home)).start()
    print("serving", flush=True)
    await asyncio.Event().wait()


def prepare(home: Path, domain: str) -> Authority:
    """An authority and the coordinator's own certificate."""
    authority = Authority.create(home / "pki", domain)
    issue(authority, coordinator_uri(domain), home / "coordinator")
    return authority


def issue(authority: Authority, uri: str, stem: Path) -> None:
    """A key and a certificate beside each other."""
    key = new_key()
    key_file = stem.with_suffix(".key")
    key_file.touch(0o600)
    key_file.write_bytes(pem_of(key))
    certificate = authority.issue(key.public_key(), uri)
    stem.with_suffix(".pem").write_bytes(certificate.public_bytes(Encoding.PEM))


def main(arguments: list[str]) -> Any:
    asyncio.run(serve(Path(arguments[0]), arguments[1], int(arguments[2])))


if __name__ == "__main__":
    main(sys.argv[1:])
