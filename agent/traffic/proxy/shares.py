"""How many connections each deployment has in the proxy, and each source in each deployment."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from agent.traffic.limits import DEPLOYMENT_CONNECTIONS, SOURCE_CONNECTIONS, Limits


@dataclass(frozen=True, slots=True)
class Share:
    """What one connection takes, and gives back at its end."""

    deployment: str
    source: str


class Shares:
    """`limits` may be replaced at any time: connections that there are stay."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._open: Counter[str] = Counter()
        self._by_source: Counter[Share] = Counter()
        self._refused: dict[str, Counter[str]] = {}

    @property
    def refused(self) -> dict[str, dict[str, int]]:
        """Deployment → limit → connections refused since the proxy started."""
        return {name: dict(counts) for name, counts in self._refused.items()}

    def take(self, share: Share) -> bool:
        """Whether there is room; what is refused is counted."""
        reached = self._reached(share)
        if reached is not None:
            self._refused.setdefault(share.deployment, Counter())[reached] += 1
            return False
        self._open[share.deployment] += 1
        self._by_source[share] += 1
        return True

    def give_back(self, share: Share) -> None:
        """Nothing is kept of who has no connection."""
        _one_less(self._open, share.deployment)
        _one_less(self._by_source, share)

    def _reached(self, share: Share) -> str | None:
        if self._by_source[share] >= self.limits.source_connections:
            return SOURCE_CONNECTIONS
        if self._open[share.deployment] >= self.limits.deployment_connections:
            return DEPLOYMENT_CONNECTIONS
        return None


def _one_less(counts: Counter[Any], key: object) -> None:
    counts[key] -= 1
    if not counts[key]:
        del counts[key]
