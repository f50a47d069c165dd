"""The fleet's certificates as they were at one moment, checked, and ready for TLS."""

from __future__ import annotations

import ssl
from dataclasses import dataclass

from agent.config import TlsConfig
from agent.pki.facts import Facts, TrustError
from agent.pki.names import coordinator_uri
from agent.pki.peer import NamedPeer


@dataclass(frozen=True, slots=True)
class TlsContexts:
    """All of it. `server` verifies any peer of the fleet, `client` none but the coordinator."""

    server: ssl.SSLContext
    client: ssl.SSLContext
    facts: Facts


def make_tls_contexts(tls: TlsConfig, facts: Facts) -> TlsContexts:
    """Of the files of which these are the facts. Raises TrustError."""
    coordinator = NamedPeer.of(coordinator_uri(tls.trust_domain))
    return TlsContexts(
        server=_context(tls, ssl.PROTOCOL_TLS_SERVER, ssl.SSLObject),
        client=_context(tls, ssl.PROTOCOL_TLS_CLIENT, coordinator),
        facts=facts,
    )


def _context(tls: TlsConfig, protocol: int, kind: type[ssl.SSLObject]) -> ssl.SSLContext:
    """TLS 1.3 alone, the peer's certificate required.

    No session is ever resumed: a resumed one would skip the look at the peer's certificate.
    """
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # who the peer is, its URI says
    context.verify_mode = ssl.CERT_REQUIRED
    context.sslobject_class = kind
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0
    try:
        context.load_cert_chain(tls.certificate, tls.key, password=_no_password)
        context.load_verify_locations(cafile=tls.ca)
        if tls.crl is not None:
            context.load_verify_locations(cafile=tls.crl)
            context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_CHAIN
    except (OSError, ValueError) as error:  # an SSLError is an OSError
        raise TrustError("certificate", "cannot be used for TLS") from error
    return context


def _no_password() -> str:
    """A key that needs one is refused; without this, OpenSSL would ask on the terminal."""
    raise ValueError("the key is encrypted")
