"""AMD's and Intel's services on real TLS: they answer, hold, refuse and lie when told."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from agent.attestation.collateral_cache.items import Service
from tests.fakes.https_files import make_certificate
from tests.fakes.intel import FMSPC, FakeIntel
from tests.fakes.snp_chain import FakeAmd, tcb_bytes

Reply = Callable[[web.Request], web.Response]


@dataclass
class FakeVendors:
    """`seen`: the path and query of each request, in order. `instead` serves by path, always.

    While `held` is not set, requests wait.
    """

    amd: FakeAmd
    intel: FakeIntel
    url: str = ""
    trust: ssl.SSLContext = field(default_factory=ssl.create_default_context)
    seen: list[str] = field(default_factory=list)
    instead: dict[str, Reply] = field(default_factory=dict)
    crl: bytes = b""
    free: asyncio.Event = field(default_factory=asyncio.Event)
    cut_after: int | None = None

    @property
    def urls(self) -> dict[Service, str]:
        return {
            Service.AMD: self.url,
            Service.INTEL: self.url,
            Service.INTEL_ROOT: f"{self.url}/root.der",
            Service.NVIDIA_RIM: f"{self.url}/v1/rim",
        }

    def asked(self) -> Counter[str]:
        """How often each path was asked for."""
        return Counter(path.partition("?")[0] for path in self.seen)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(request.path_qs)
        await self.free.wait()
        if request.path in self.instead:
            return self.instead[request.path](request)
        found = self._answer(request)
        if self.cut_after is None or found.status != 200:
            return found
        broken = web.StreamResponse(headers={"Content-Length": "9999"})
        await broken.prepare(request)
        await broken.write(b"x" * self.cut_after)
        assert request.transport is not None
        request.transport.close()
        return broken

    def _answer(self, request: web.Request) -> web.Response:
        match request.path.strip("/").split("/"):
            case ["vcek", "v1", self.amd.product, "cert_chain"]:
                given = self.amd.endorsements
                pem = b"".join(
                    x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM)
                    for der in (given.ask, given.ark)
                )
                return web.Response(body=pem)
            case ["vcek", "v1", self.amd.product, "crl"]:
                return web.Response(body=self.crl or self.amd.crl())
            case ["vcek", "v1", self.amd.product, chip] if chip == self.amd.chip_id.hex():
                wanted = int(request.query["ucodeSPL"]), int(request.query["blSPL"])
                tcb = tcb_bytes(self.amd.product)
                if wanted != (tcb[7], tcb[0]):
                    return web.Response(status=404)
                return web.Response(body=self.amd.endorsements.leaf)
            case ["tdx", "certification", "v4", *_] | ["sgx", *_] | ["root.der"]:
                return self._intel_answer(request)
        return web.Response(status=404)

    def _intel_answer(self, request: web.Request) -> web.Response:
        given, intel = self.intel.collateral(), self.intel
        if request.path.endswith("/tcb") and request.query["fmspc"] == FMSPC.hex():
            body, name = _signed("tcbInfo", given.tcb_info, given.tcb_info_signature), "TCB-Info"
        elif request.path.endswith("/qe/identity"):
            signature = given.qe_identity_signature
            body = _signed("enclaveIdentity", given.qe_identity, signature)
            name = "SGX-Enclave-Identity"
        elif request.path.endswith("/pckcrl") and request.query["ca"] == "platform":
            chain = quote(intel.platform_ca.pem + intel.anchor.pem)
            return web.Response(body=given.pck_crl, headers={"SGX-PCK-CRL-Issuer-Chain": chain})
        elif request.path == "/root.der":
            return web.Response(body=given.root_ca_crl)
        else:
            return web.Response(status=404)
        return web.Response(
            body=body, headers={f"{name}-Issuer-Chain": quote(given.tcb_info_issuer_chain)}
        )


def _signed(name: str, document: str, signature: bytes) -> bytes:
    return f'{{"{name}":{document},"signature":{json.dumps(signature.hex())}}}'.encode()


@asynccontextmanager
async def serve_vendors(
    directory: Path, amd: FakeAmd, intel: FakeIntel
) -> AsyncIterator[FakeVendors]:
    vendors = FakeVendors(amd, intel)
    vendors.free.set()
    certificate = make_certificate(directory)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    vendors.trust = ssl.create_default_context(cafile=str(certificate))
    app = web.Application()
    app.router.add_get("/{path:.*}", vendors.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    vendors.url = f"https://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield vendors
    finally:
        vendors.free.set()
        await runner.cleanup()
