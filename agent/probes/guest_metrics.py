"""What a guest measures of itself: asked for with its key where it has one. Pure.

A guest that was given METRICS_API_KEY wants it as a Bearer token. It is a secret: it is sent to a
TLS key that evidence has bound to this launch, and to nobody else, whatever answers there.
"""

from __future__ import annotations

from typing import Any

import msgspec

from agent.probes.answers import Reading

METRICS_API_KEY = "METRICS_API_KEY"
_WANTED = 401


class MetricsAccess(msgspec.Struct, frozen=True, kw_only=True):
    """The deployment's METRICS_API_KEY, and the TLS key (SPKI SHA-256, hex) that evidence bound.

    `bound_key` None: none has been yet, or nothing is attested here. Holds a secret: never shown.
    """

    token: str
    bound_key: str | None = None

    def __repr__(self) -> str:
        return f"MetricsAccess(bound_key={self.bound_key!r})"

    def bearer_for(self, key: str) -> str | None:
        """What to say to whoever showed this TLS key."""
        if self.bound_key is None or key != self.bound_key:
            return None
        return self.token if self.token.isascii() and self.token.isprintable() else None


def read_metrics(
    status: int | None, reading: Reading, access: MetricsAccess | None
) -> dict[str, Any] | None:
    """What is shown of them: the guest's document, why there is none, or None of no interest."""
    if reading.problem is None:
        return reading.document
    if status != _WANTED:
        return None
    if access is None:
        why = f"the guest wants {METRICS_API_KEY}: give the deployment a secret of that name"
    elif access.bound_key is None:
        why = f"{METRICS_API_KEY} is sent only over a TLS key that evidence has bound"
    else:
        why = f"the guest does not take the {METRICS_API_KEY} that it was sent"
    return {"error": f"{_WANTED}: {why}"}
