"""One thing that is wrong with a GPU, as one look or one event shows it. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from agent.model.gpu import HealthAction, Severity, Sight


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing. `looks`: how many looks in a row must show it before it is believed."""

    code: str
    severity: Severity
    action: HealthAction
    detail: str
    source: Sight = Sight.NVML
    looks: int = 1
