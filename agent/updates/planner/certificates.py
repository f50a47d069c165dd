"""Boots that ask for a public certificate, counted by domain. The counting is pure.

Such a guest asks at each boot, and issuers give few a week for one name: a guest that is launched
again and again ends without any, on every host. So these boots are recorded, by the wall clock (a
week outlives a boot of the host), and a relaunch after an exit stops before the issuer does.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

from agent.model.clock import Instant
from agent.model.lease import Sample
from agent.model.revision import LOCALHOST, Revision

WINDOW = dt.timedelta(days=7)
WARN_FROM, STOP_AT = 3, 4
SPENT = "certificate_boots_spent"
KIND = "certificate_boot"  # of the samples: when, in seconds since 1970


def certificate_domain(revision: Revision) -> str | None:
    """The name for which its guests ask for a certificate at every boot; None if they do not."""
    return public_name(revision.own_guest_domain or LOCALHOST, revision.public_certificate)


def public_name(guest_domain: str, public_certificate: bool) -> str | None:
    """The name as an issuer counts it; None of a guest that signs its certificate itself."""
    name = guest_domain.lower()
    return name if public_certificate and name != LOCALHOST else None


def boot_sample(revision: Revision, now: Instant) -> tuple[Sample, ...]:
    """What is to be recorded of a guest of this revision that begins to boot now."""
    domain = certificate_domain(revision)
    return (Sample(kind=KIND, key=domain, value_s=now.wall.timestamp()),) if domain else ()


def recent(boots: Sequence[float], now: Instant) -> int:
    """How many of them lie in the window; one in the future does, for a clock was set back."""
    since = (now.wall - WINDOW).timestamp()
    return sum(at > since for at in boots)


def left(boots: Sequence[float], now: Instant) -> int:
    """How many boots there are until a guest that ends by itself is not launched again."""
    return max(0, STOP_AT - recent(boots, now))


def counted(boots: Sequence[float], domain: str, now: Instant) -> str:
    """`3 boots of example.org asked for a certificate within 7 days`."""
    return (
        f"{recent(boots, now)} boots of {domain} asked for a certificate within {WINDOW.days} days"
    )
