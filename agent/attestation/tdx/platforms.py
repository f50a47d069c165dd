"""The platforms that the operator endorses: which firmware on which virtual machine. Pure.

MRTD measures the TD's firmware and RTMR0 the machine that it found; neither is in a release, so
that only a list of the operator can say which are good. The pair counts, never one of the two.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from agent.attestation.tdx.registers import register_from_hex


@dataclass(frozen=True, slots=True)
class EndorsedPlatform:
    """`name`: what the operator calls it. Both registers: 48 bytes."""

    name: str
    mrtd: bytes
    rtmr0: bytes


def endorsed_platform(name: str, mrtd: str, rtmr0: str) -> EndorsedPlatform:
    """From hex of either case; raises `tdx_registers` naming the platform's field."""
    return EndorsedPlatform(
        name,
        register_from_hex(mrtd, f"{name}: mrtd"),
        register_from_hex(rtmr0, f"{name}: rtmr0"),
    )


def match_platform(
    platforms: Iterable[EndorsedPlatform], mrtd: bytes, rtmr0: bytes
) -> EndorsedPlatform | None:
    """The first endorsed platform with both registers; None: not endorsed."""
    return next((p for p in platforms if (p.mrtd, p.rtmr0) == (mrtd, rtmr0)), None)
