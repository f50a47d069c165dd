"""Who a certificate of the fleet speaks for: exactly one SPIFFE URI among its names. Pure.

A certificate with none, with several, or with one of another trust domain speaks for nobody: a
name is taken whole or not at all (SPIFFE X.509-SVID, section 2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_COORDINATOR, _OBSERVER = "coordinator", "observer"


def coordinator_uri(trust_domain: str) -> str:
    """The coordinator, every replica of it."""
    return f"spiffe://{trust_domain}/{_COORDINATOR}"


def observer_uri(trust_domain: str) -> str:
    """Whoever may read and change nothing."""
    return f"spiffe://{trust_domain}/{_OBSERVER}"


def host_uri(trust_domain: str, host_id: str) -> str:
    """One host's agent."""
    return f"spiffe://{trust_domain}/host/{host_id}"


def uri_of(names: Sequence[tuple[str, str]]) -> str | None:
    """The only URI among (kind, value) pairs; None if there is none, or more than one."""
    uris = [value for kind, value in names if kind == "URI"]
    return uris[0] if len(uris) == 1 else None


def peer_uri(certificate: Mapping[str, Any] | None) -> str | None:
    """The only URI of a verified peer, from what `ssl.SSLSocket.getpeercert()` returns."""
    names = certificate.get("subjectAltName", ()) if certificate else ()
    return uri_of([(str(kind), str(value)) for kind, value, *_ in names])
