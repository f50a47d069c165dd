"""What needs the library for certificates is done by a process of its own, for that moment.

The agent lives for months and looks at its certificates a few times: it need not carry the largest
of its libraries for that. One order goes to the process on stdin, one answer comes back.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from agent.config import TlsConfig
from agent.errors import AgentError
from agent.host.commands import CommandError, run_command
from agent.pki.facts import Facts, TrustError

CHILD = (sys.executable, "-m", "agent.pki.x509_worker")
_TIMEOUT_S = 30.0


class X509ClientError(AgentError):
    """The process failed. The files may be good: trying again may help."""

    @property
    def code(self) -> str:
        return "tls_not_read"


class Files(msgspec.Struct, frozen=True, kw_only=True):
    """Which they are."""

    certificate: str
    key: str
    ca: str
    crl: str | None
    trust_domain: str

    @classmethod
    def of(cls, tls: TlsConfig) -> Files:
        return cls(
            certificate=str(tls.certificate),
            key=str(tls.key),
            ca=str(tls.ca),
            crl=None if tls.crl is None else str(tls.crl),
            trust_domain=tls.trust_domain,
        )

    @property
    def config(self) -> TlsConfig:
        return TlsConfig(
            certificate=Path(self.certificate),
            key=Path(self.key),
            ca=Path(self.ca),
            crl=None if self.crl is None else Path(self.crl),
            trust_domain=self.trust_domain,
        )


class Order(msgspec.Struct, frozen=True, kw_only=True, tag_field="what"):
    """Base of the orders: about which files, for which host."""

    files: Files
    host_id: str


class Inspect(Order, frozen=True, kw_only=True, tag="inspect"):
    """Read and check all; the answer is Facts."""


class Request(Order, frozen=True, kw_only=True, tag="request"):
    """Make a request for a certificate, and the own key before it; the answer is PEM."""


class Install(Order, frozen=True, kw_only=True, tag="install"):
    """Put what was answered in its place; the answer is null."""

    certificate_pem: str
    ca_pem: str
    crl_pem: str | None


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """A TrustError, on its way back."""

    setting: str
    reason: str


Orders = Inspect | Request | Install


class X509Reply(msgspec.Struct, frozen=True, kw_only=True):
    """What came of an order: one of them."""

    facts: Facts | None = None
    pem: str | None = None
    refusal: Refusal | None = None


async def inspect(tls: TlsConfig, host_id: str) -> Facts:
    """All files as they are now. Raises TrustError, ClerkError."""
    answer = await _do(Inspect(files=Files.of(tls), host_id=host_id))
    assert answer.facts is not None
    return answer.facts


async def request_certificate(tls: TlsConfig, host_id: str) -> str:
    """A request in PEM form, signed by the own key. Raises as `inspect` does."""
    answer = await _do(Request(files=Files.of(tls), host_id=host_id))
    assert answer.pem is not None
    return answer.pem


async def install(
    tls: TlsConfig, host_id: str, certificate_pem: str, ca_pem: str, crl_pem: str | None
) -> None:
    """See `agent.pki.request.install`. Raises as `inspect` does."""
    await _do(
        Install(
            files=Files.of(tls),
            host_id=host_id,
            certificate_pem=certificate_pem,
            ca_pem=ca_pem,
            crl_pem=crl_pem,
        )
    )


async def _do(order: Orders) -> X509Reply:
    try:
        done = await run_command(CHILD, stdin=msgspec.json.encode(order), timeout_s=_TIMEOUT_S)
        if done.status != 0:
            raise X509ClientError(f"the process that reads certificates failed: {done.complaint}")
        answer = msgspec.json.decode(done.stdout, type=X509Reply)
    except (CommandError, msgspec.DecodeError) as error:
        raise X509ClientError("the process that reads certificates failed") from error
    if answer.refusal is not None:
        raise TrustError(answer.refusal.setting, answer.refusal.reason)
    return answer
