"""Public certificates of guests, as admission tells of them, from the boots on record."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import UNSET

from agent.capacity.supply import HostSupply, Question
from agent.model.clock import Instant
from agent.model.reasons import Decision, Reason, ReasonCode
from agent.model.revision import guest_domain_of
from agent.store.port import Reader
from agent.updates.planner.certificates import KIND, WARN_FROM, counted, left, public_name, recent


def certificate_name(asked: Question, supply: HostSupply) -> str | None:
    """The name for which guests of what is asked for want a certificate at each boot."""
    if asked.deployment is None:
        return None
    chosen = None if asked.guest_domain is UNSET else asked.guest_domain
    name = chosen or guest_domain_of(asked.deployment, supply.default_domain)
    return public_name(name, asked.public_certificate)


def boots_of(tx: Reader, domain: str | None) -> tuple[float, ...]:
    """When guests of this name began to boot, newest first, in seconds since 1970."""
    return tuple(tx.samples(KIND, domain)) if domain else ()


def told(decision: Decision, domain: str | None, boots: Sequence[float], now: Instant) -> Decision:
    """The decision with how many boots are left, and with a reason once they are few."""
    if domain is None or decision.refused:
        return decision
    remaining, reasons = left(boots, now), decision.reasons
    if recent(boots, now) >= WARN_FROM:
        detail = f"{counted(boots, domain, now)}: issuers give few a week for one name"
        code = ReasonCode.CERTIFICATE_BOOTS
        reasons = (*reasons, Reason(code=code, detail=detail, needed=1, available=remaining))
    return msgspec.structs.replace(decision, reasons=reasons, certificate_boots_left=remaining)
