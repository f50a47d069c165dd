"""Tenants' limits in HAProxy's own words, and what it says that it has refused. Pure.

Two tables of HAProxy's count open connections: one by deployment, one by deployment and source.
Where several deployments share a listener, whose a connection is shows only with its first bytes:
there a source has its share of the listener, before HAProxy waits for these. What was refused is
counted in the table of deployments, which forgets nothing while the process lives.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from agent.traffic.limits import DEPLOYMENT_CONNECTIONS, SOURCE_CONNECTIONS, Limits

TENANTS: Final = "tenants"
_SOURCES = "sources"
_TENANTS_KEPT, _SOURCES_KEPT = "10k", "100k"
_COUNTERS = {"gpc0": SOURCE_CONNECTIONS, "gpc1": DEPLOYMENT_CONNECTIONS}


def timeouts(limits: Limits) -> str:
    """Of both directions together; a client that has said all may wait as long for the rest."""
    names = ("client", "server", "tunnel")
    return "".join(f"  timeout {name} {limits.idle_s}s\n" for name in names)


def tables() -> str:
    """The sections that count. Not a server is in them."""
    return (
        f"backend {TENANTS}\n"
        f"  stick-table type string len 64 size {_TENANTS_KEPT} store conn_cur,gpc0,gpc1\n"
        f"backend {_SOURCES}\n"
        f"  stick-table type string len 128 size {_SOURCES_KEPT} expire 1m store conn_cur\n"
    )


def of_source(limits: Limits, place: str, *, counts: bool) -> Iterator[str]:
    """Rules at a listener for each source. `place`: of whom it has its share.

    `counts`: `place` is a deployment, in whose name refusals can be told.
    """
    yield f"tcp-request connection set-var(sess.place) str({place})"
    yield "tcp-request connection set-var(sess.source) src,concat(/,sess.place)"
    yield f"tcp-request connection track-sc0 var(sess.source) table {_SOURCES}"
    over = f"{{ sc0_conn_cur gt {limits.source_connections} }}"
    if counts:
        yield f"tcp-request connection track-sc1 var(sess.place) table {TENANTS} if {over}"
        yield f"tcp-request connection sc-inc-gpc0(1) if {over}"
    yield f"tcp-request connection reject if {over}"


def of_deployment(limits: Limits, at: str, deployment: str) -> Iterator[str]:
    """Rules for all connections of one deployment. `at`: connection or content."""
    over = f"{{ sc1_conn_cur gt {limits.deployment_connections} }}"
    yield f"tcp-request {at} track-sc1 {deployment} table {TENANTS}"
    yield f"tcp-request {at} sc-inc-gpc1(1) if {over}"
    yield f"tcp-request {at} reject if {over}"


def refused_in(listing: str) -> dict[str, dict[str, int]]:
    """Deployment → limit → connections, from `show table`."""
    found: dict[str, dict[str, int]] = {}
    for line in listing.splitlines():
        fields = dict(word.split("=", 1) for word in line.split() if "=" in word)
        for name, limit in _COUNTERS.items():
            count = fields.get(name, "0")
            if "key" in fields and count.isdecimal() and int(count):
                found.setdefault(fields["key"], {})[limit] = int(count)
    return found
