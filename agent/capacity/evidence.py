"""Whether a guest could give evidence at all, by what it is told of itself. Pure.

A guest whose name is `localhost`, or whose config says so, gives a dummy report and signs its own
certificate. Where evidence is demanded it would never be Ready, which is said before it boots.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from agent.capacity.supply import HostSupply, Question
from agent.model.reasons import Reason, ReasonCode
from agent.model.revision import LOCALHOST, guest_domain_of

_REMEDY = "give the deployment a domain (domain, --domain), or set releases.default_domain"


def evidence_faults(question: Question, supply: HostSupply) -> Iterator[Reason]:
    """Why no evidence could come, where it is demanded."""
    if not supply.evidence_demanded:
        return
    if _is_localhost(question, supply):
        detail = (
            "the guest's name (DOMAIN) would be localhost, for which it gives a dummy report in "
            f"place of the evidence that is demanded here: {_REMEDY}"
        )
        yield Reason(code=ReasonCode.DOMAIN_MISSING, detail=detail)
    if question.debug and not supply.allow_unattested:
        detail = (
            "a debug release (tinfoil-debug=on) gives no evidence, and this host demands it: set "
            "allow_unattested: true to run it unattested, or deploy the production release"
        )
        yield Reason(code=ReasonCode.DEBUG_UNATTESTED, detail=detail)
    if question.dummy_attestation:
        detail = (
            "the config has shim.dummy-attestation: its guest gives a dummy report in place of "
            "the evidence that is demanded here: publish a release without it"
        )
        yield Reason(code=ReasonCode.RELEASE_INVALID, detail=detail)


def domain_warnings(question: Question, supply: HostSupply) -> tuple[str, ...]:
    """What a person should know of the name that the guest is given."""
    if not _is_localhost(question, supply):
        return ()
    return (
        "the guest's name (DOMAIN) is localhost: it gives a dummy report and signs its own "
        f"certificate; {_REMEDY}",
    )


def _is_localhost(question: Question, supply: HostSupply) -> bool:
    name, named = question.deployment, question.guest_domain
    if name is None or named is msgspec.UNSET:
        return False
    return (named or guest_domain_of(name, supply.default_domain)) == LOCALHOST
