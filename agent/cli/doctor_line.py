"""What a doctor says: one line, with the mend."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Line:
    """One finding.

    `state`: ok, warn (the agent runs without it) or error (it does not, or cannot give away what
    the host is there for).
    """

    what: str
    state: str
    detail: str
    mend: str = ""
