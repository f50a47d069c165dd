"""How an agent gets its certificate, and keeps having one.

    no certificate ──one-time token──► enrolled ──two thirds of its life──► renewed ──► …
                                          ▲            away for too long: ended ──┐
                                          └──────────────one-time token───────────┘

The key is made here and stays here. The request is told again until it is answered, always for
the same key, so that an answer that was lost costs no second token. The token's file is removed
once it is spent.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import random
import ssl
from collections.abc import Callable
from pathlib import Path

import msgspec

from agent.errors import AgentError, describe
from agent.host.files import StorageError, read_bounded
from agent.link.client import CoordinatorClient
from agent.link.session import backoff_s
from agent.pki.facts import TrustError
from agent.pki.keeper import FleetCertificates, Problems
from agent.pki.names import coordinator_uri
from agent.pki.peer import NamedPeer
from agent.pki.tls_contexts import TlsContexts
from agent.pki.x509_client import install, request_certificate
from agent.wire.report import EnrolAnswer, EnrolRequest, RenewRequest, ReportedHost

log = logging.getLogger(__name__)
_LOOK_EVERY_S = 60.0
_PROBLEM = "link/enrolment"
_MAX_TOKEN_BYTES = 4096
_encode = msgspec.json.encode


class Enrolment:
    """One a daemon. `keep` is its only task."""

    def __init__(
        self,
        url: str,
        token_file: Path | None,
        *,
        trust: FleetCertificates,
        problems: Problems,
        host: Callable[[], ReportedHost],
        now: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
    ) -> None:
        self._url = url
        self._token_file = token_file
        self._trust = trust
        self._problems = problems
        self._host = host
        self._now = now
        # a fleet that was enrolled in one go does not come back in one go
        self._share = random.uniform(0.6, 0.7)  # noqa: S311 - jitter
        self._failures = 0

    async def keep(self) -> None:
        """Have a certificate that lives, for ever."""
        while True:
            seen = self._trust.changed.count
            try:
                await self._step()
            except (AgentError, OSError) as error:
                self._failures += 1
                self._tell(error)
                await asyncio.sleep(backoff_s(self._failures))
                continue
            self._failures = 0
            self._problems.clear_problem(_PROBLEM)
            await self._trust.changed.beyond(seen, self._pause_s())

    async def _step(self) -> None:
        material, token_file = self._trust.material, self._token_file
        if material is None:
            if token_file is not None and not self._trust.tls.certificate.exists():
                await self._enrol(token_file)
        elif self._ended(material) and token_file is not None and token_file.exists():
            await self._enrol(token_file)
        elif self._now() >= self._renewal_at(material):
            await self._renew(material)

    def _ended(self, material: TlsContexts) -> bool:
        """Who has no valid certificate cannot ask for another one with it."""
        return material.facts.ended(self._now())

    def _renewal_at(self, material: TlsContexts) -> dt.datetime:
        own = material.facts
        return own.since + (own.until - own.since) * self._share

    def _pause_s(self) -> float:
        material = self._trust.material
        if material is None:
            return _LOOK_EVERY_S / 60  # a token may be put there at any time
        left = (self._renewal_at(material) - self._now()).total_seconds()
        return min(_LOOK_EVERY_S, max(0.5, left))

    async def _enrol(self, token_file: Path) -> None:
        try:
            token = read_bounded(token_file, _MAX_TOKEN_BYTES).decode("ascii").strip()
        except UnicodeDecodeError as error:
            raise StorageError(f"{token_file} holds no token") from error
        csr_pem = await request_certificate(self._trust.tls, self._trust.host_id)
        request = EnrolRequest(token=token, csr_pem=csr_pem, host=self._host())
        client = CoordinatorClient(self._url, self._first_contact())
        try:
            answer = await client.send("POST", "/v1/agents/enroll", _encode(request), EnrolAnswer)
        finally:
            await client.close()
        await self._install(answer)
        token_file.unlink(missing_ok=True)
        log.info("enrolled", extra={"host": self._trust.host_id})

    async def _renew(self, material: TlsContexts) -> None:
        csr_pem = await request_certificate(self._trust.tls, self._trust.host_id)
        client = CoordinatorClient(self._url, material.client)
        try:
            request = _encode(RenewRequest(csr_pem=csr_pem))
            answer = await client.send("POST", "/v1/agents/renew", request, EnrolAnswer)
        finally:
            await client.close()
        await self._install(answer)
        log.info("certificate renewed", extra={"host": self._trust.host_id})

    async def _install(self, answer: EnrolAnswer) -> None:
        tls = self._trust.tls
        if answer.trust_domain != tls.trust_domain:
            raise TrustError("trust_domain", "the coordinator is of another trust domain")
        await install(
            tls, self._trust.host_id, answer.certificate_pem, answer.ca_pem, answer.crl_pem
        )
        await self._trust.look()

    def _first_contact(self) -> ssl.SSLContext:
        """By the fleet's authority if it is here already, else by the system's and the host name.

        Never without either: whoever takes the token takes the host's place in the fleet.
        """
        tls = self._trust.tls
        if not tls.ca.exists():
            return ssl.create_default_context()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False  # the name is in the URI
        context.sslobject_class = NamedPeer.of(coordinator_uri(tls.trust_domain))
        context.load_verify_locations(cafile=tls.ca)
        if tls.crl is not None and tls.crl.exists():
            context.load_verify_locations(cafile=tls.crl)
            context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_CHAIN
        return context

    def _tell(self, error: AgentError | OSError) -> None:
        material = self._trust.material
        known = material is not None and not self._ended(material)
        what = "the certificate cannot be renewed" if known else "this host cannot be enrolled"
        news = self._problems.raise_problem(
            _PROBLEM,
            code="renewal_failed" if known else "enrolment_failed",
            severity="warning" if known else "error",
            detail=f"{what}: {describe(error)}",
            mend="it is tried again by itself"
            if known
            else f"see that the coordinator is there; a token that is spent or too old must be "
            f"replaced in {self._token_file}",
        )
        if news:
            log.warning("%s: %s", what, describe(error))
