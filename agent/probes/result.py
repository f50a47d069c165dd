"""One result of one probe: what the rounds make and what the verdicts are made of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """One result of one probe. `answer` is printable and short; `code` is for a failure.

    `decisive`: this one failure is enough for a verdict. `afresh`: passes before it do not count.
    `unknown`: the answer tells nothing of what was asked about. It is not held against the
    enclave, so it counts into the same runs as a pass, and is shown as what it is.
    """

    probe: str
    passed: bool
    answer: str
    code: str = "probe_failed"
    decisive: bool = False
    afresh: bool = False
    unknown: bool = False
