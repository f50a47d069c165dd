"""What tenants' limits refused, by deployment, since the agent started.

Invariants: no number ever falls; what was refused while an address was another deployment's stays
with that one, also after its guest is gone and the address belongs to somebody else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from agent.model.ids import DeploymentName

_Counts = Mapping[str, Mapping[str, int]]


class Refusals:
    """`by_deployment`: deployment → limit → how many."""

    def __init__(self) -> None:
        self.by_deployment: dict[DeploymentName, Counter[str]] = {}
        self._before: _Counts | None = None  # what the data plane said last

    def take(self, said: _Counts, tenants: Mapping[str, DeploymentName]) -> None:
        """`said`: tenant → limit → how many since the data plane began; `tenants`: whose they are.

        A data plane that says less than before has begun anew. What it says first is of before
        this agent's time.
        """
        before = said if self._before is None else self._before
        self._before = {tenant: dict(counts) for tenant, counts in said.items()}
        for tenant, counts in said.items():
            if (deployment := tenants.get(tenant)) is None:
                continue
            for limit, count in counts.items():
                known = before.get(tenant, {}).get(limit, 0)
                if grown := count - known if count >= known else count:
                    self.by_deployment.setdefault(deployment, Counter())[limit] += grown

    def forget_others(self, kept: set[DeploymentName]) -> None:
        """Deployments that are no more."""
        for name in self.by_deployment.keys() - kept:
            del self.by_deployment[name]
