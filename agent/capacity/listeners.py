"""Which of the wanted host listeners are taken, by a deployment or by another program.

A data plane that routes by name lets several deployments have the very same listener, each by a
domain of its own. A claim without a domain takes the listener whole.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache

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


@lru_cache(maxsize=4096)
def _place(key: str) -> _Place:
    """From a claim's key; the same few are read again and again."""
    return _Place.parse(key)


class Listeners:
    """Who has which listener of the host at one moment, by port: only one port's can collide."""

    def __init__(self, supply: HostSupply, claims: Iterable[Claim]) -> None:
        self._supply = supply
        self._held = defaultdict[int, list[tuple[_Place, str]]](list)
        for claim in claims:
            if claim.kind == ClaimKind.LISTEN:
                place = _place(claim.key)
                self._held[place.listen.port].append((place, claim.holder))
        self._foreign = defaultdict[int, list[Listen]](list)
        for listen in sorted(set(supply.foreign_listeners)):
            self._foreign[listen.port].append(listen)

    def taken(self, question: Question) -> list[Reason]:
        """A reason for each wanted listener that somebody else has, in the order wanted.

        A deployment's own listeners are no obstacle, nor are the sockets that the data plane holds
        for those that run. Nothing listens for one that is stopped: then it is a program that
        does, which took the port.
        """
        wanted = [_place(key) for key in question.listen_claims]
        found = [
            (place, self._taken_by(question, place, wanted[:index]))
            for index, place in enumerate(wanted)
        ]
        return [
            Reason(code=ReasonCode.LISTEN_IN_USE, detail=f"{place.listen} is taken by {whose}")
            for place, whose in found
            if whose
        ]

    def _taken_by(
        self, question: Question, wanted: _Place, before: Sequence[_Place]
    ) -> str | None:
        for place in before:
            if wanted.listen.overlaps(place.listen):
                return f"another listener of the same request, {place.listen}"
        held = self._held.get(wanted.listen.port, [])
        by_name = self._supply.listeners_by_name
        for place, holder in sorted(held):
            if holder != question.deployment and wanted.excludes(place, by_name=by_name):
                return f"deployment {holder}, which listens on {place}"
        ours = {p.listen for p, holder in held if holder != question.deployment or question.own}
        for listen in self._foreign.get(wanted.listen.port, []):
            if listen not in ours and wanted.listen.overlaps(listen):
                program = self._supply.programs.get(listen, "a program on this host")
                return f"{program}, which listens on {listen}"
        return None


def listener_warnings(question: Question, supply: HostSupply) -> tuple[str, ...]:
    """Of listeners that nothing can reach, or that no new deployment would be given.

    A request's new ones are refused before (`updates.admission.requests`); those that a deployment
    has already must not stand in the way of its next version.
    """
    rules = supply.listen_rules
    wanted = [_place(key).listen for key in question.listen_claims]
    said = [(listen, rules.fault(listen) or rules.absence(listen)) for listen in wanted]
    return tuple(f"its listener {listen} takes no client: {why}" for listen, why in said if why)
