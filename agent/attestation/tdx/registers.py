"""The five registers that say what a TD booted. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from agent.attestation.evidence import EvidenceError

REGISTER_BYTES = 48
ZERO_REGISTER = bytes(REGISTER_BYTES)

_NAMES = ("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3")
_HEX = re.compile(r"[0-9a-fA-F]{96}")


@dataclass(frozen=True, slots=True)
class TdxRegisters:
    """48 bytes each, in the order of the published measurement format."""

    mrtd: bytes
    rtmr0: bytes
    rtmr1: bytes
    rtmr2: bytes
    rtmr3: bytes

    def hex(self) -> tuple[str, ...]:
        """Lower case, in order."""
        return tuple(getattr(self, name).hex() for name in _NAMES)


def registers_from_hex(values: Sequence[str]) -> TdxRegisters:
    """Five registers in hex of either case; anything else is `tdx_registers`."""
    if len(values) != len(_NAMES):
        raise EvidenceError(
            "tdx_registers", f"a TDX measurement has {len(_NAMES)} registers, not {len(values)}"
        )
    return TdxRegisters(
        *(register_from_hex(value, name) for name, value in zip(_NAMES, values, strict=True))
    )


def register_from_hex(value: str, field: str) -> bytes:
    """One register of 96 hex digits; anything else is `tdx_registers` and names the field."""
    if _HEX.fullmatch(value) is None:
        raise EvidenceError("tdx_registers", f"{field} must be 96 hex digits")
    return bytes.fromhex(value)
