"""Which of the wanted host listeners are taken, by a deployment or by another program.

A data plane that routes by name lets several deployments have the very same listener, each by a
domain of its own. A claim without a domain takes the listener whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from agent.capacity.supply import HostSupply, Question
from agent.model.lease import Claim, ClaimKind
from agent.model.reasons import Reason, ReasonCode
from agent.model.resources import Listen


class _Place(msgspec.Struct, frozen=True, order=True):
    """A listener, or the connections to it that ask for a domain."""

    listen: Listen
    domain: str = ""

    @classmethod
    def parse(cls, key: str) -> _Place:
        """From a claim's key."""
        listen, _, domain = key.partition("/")
        return cls(Listen.parse(listen), domain)

    def excludes(self, other: _Place, *, by_name: bool) -> bool:
        if by_name and self.listen == other.listen and self.domain and other.domain:
            return self.domain == other.domain
        return self.listen.overlaps(other.listen)

    def __str__(self) -> str:
        return f"{self.listen} for {self.domain}" if self.domain else str(self.listen)


def taken_listeners(
    question: Question, supply: HostSupply, claims: Sequence[Claim]
) -> list[Reason]:
    """A reason for each wanted listener that somebody else has, in the order wanted.

    A deployment's own listeners are no obstacle, nor are the sockets that the data plane holds
    for those that run. Nothing listens for one that is stopped: then it is a program that does,
    which took the port.
    """
    wanted = [_Place.parse(key) for key in question.listen_claims]
    held = [
        (_Place.parse(claim.key), claim.holder)
        for claim in claims
        if claim.kind == ClaimKind.LISTEN
    ]
    others = sorted((place, holder) for place, holder in held if holder != question.deployment)
    ours = {
        place.listen for place, holder in held if holder != question.deployment or question.own
    }
    foreign = {
        listen: supply.programs.get(listen, "a program on this host")
        for listen in sorted(set(supply.foreign_listeners) - ours)
    }
    reasons = []
    for index, place in enumerate(wanted):
        beside = [(other, whose) for other, whose in others if _collide(place, other, supply)]
        whose = _taken_by(place, wanted[:index], beside, foreign)
        if whose:
            reasons.append(
                Reason(code=ReasonCode.LISTEN_IN_USE, detail=f"{place.listen} is taken by {whose}")
            )
    return reasons


def listener_warnings(question: Question, supply: HostSupply) -> tuple[str, ...]:
    """Of listeners that nothing can reach, or that no new deployment would be given.

    A request's new ones are refused before (`updates.admission.requests`); those that a deployment
    has already must not stand in the way of its next version.
    """
    rules = supply.listen_rules
    wanted = [_Place.parse(key).listen for key in question.listen_claims]
    said = [(listen, rules.fault(listen) or rules.absence(listen)) for listen in wanted]
    return tuple(f"its listener {listen} takes no client: {why}" for listen, why in said if why)


def _collide(wanted: _Place, other: _Place, supply: HostSupply) -> bool:
    return wanted.excludes(other, by_name=supply.listeners_by_name)


def _taken_by(
    wanted: _Place,
    before: Sequence[_Place],
    others: Sequence[tuple[_Place, str]],
    foreign: Mapping[Listen, str],
) -> str | None:
    """`others` are those in the way."""
    for place in before:
        if wanted.listen.overlaps(place.listen):
            return f"another listener of the same request, {place.listen}"
    for place, holder in others:
        return f"deployment {holder}, which listens on {place}"
    for listen, program in foreign.items():
        if wanted.listen.overlaps(listen):
            return f"{program}, which listens on {listen}"
    return None
