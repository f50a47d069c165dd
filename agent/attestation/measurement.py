"""Measurements as releases and evidence name them, compared across platforms. Pure.

A release's measurement speaks for both platforms: a SEV-SNP digest and the two TDX registers that
a workload decides (RTMR1, RTMR2). MRTD and RTMR0 are the platform's and are not compared here;
RTMR3 must be zero. The types are the predicates of the public contract.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from agent.attestation.evidence import EvidenceError

_REGISTER_BYTES = 48
_ZERO = bytes(_REGISTER_BYTES)
_SNP, _RTMR1, _RTMR2 = range(3)  # of a release's measurement
_TDX_RTMR1, _TDX_RTMR2, _TDX_RTMR3 = 2, 3, 4  # after MRTD and RTMR0


class MeasurementKind(StrEnum):
    """Which registers a measurement has."""

    SNP = "https://tinfoil.sh/predicate/sev-snp-guest/v2"
    TDX = "https://tinfoil.sh/predicate/tdx-guest/v2"
    RELEASE = "https://tinfoil.sh/predicate/snp-tdx-multiplatform/v1"


_COUNTS = {MeasurementKind.SNP: 1, MeasurementKind.TDX: 5, MeasurementKind.RELEASE: 3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """Registers of 48 bytes, as many as the kind has."""

    kind: MeasurementKind
    registers: tuple[bytes, ...]

    def fingerprint(self) -> str:
        """One register stands for itself; several are hashed with the name of their kind."""
        shown = [register.hex() for register in self.registers]
        if len(shown) == 1:
            return shown[0]
        return hashlib.sha256((self.kind + "".join(shown)).encode()).hexdigest()


def read_measurement(kind: str, registers: Sequence[str]) -> Measurement:
    """From hex in either case.

    Raises EvidenceError `measurement_kind`, `measurement_registers` or `measurement_malformed`.
    """
    if kind not in list(MeasurementKind):
        raise EvidenceError(
            "measurement_kind", f"measurements of type {kind[:80]!r} are not known"
        )
    known = MeasurementKind(kind)
    if len(registers) != _COUNTS[known]:
        raise EvidenceError(
            "measurement_registers",
            f"a {known.name} measurement has {_COUNTS[known]} registers, not {len(registers)}",
        )
    return Measurement(kind=known, registers=tuple(map(_register, registers)))


def compare(one: Measurement, other: Measurement) -> None:
    """Returns if both are of the same software.

    Raises EvidenceError `measurement_mismatch`, `measurement_rtmr3`, or `measurement_combination`
    for kinds that have nothing to compare.
    """
    if one.kind is other.kind:
        _require_equal(one.registers, other.registers, "a register")
        return
    release, guest = (one, other) if one.kind is MeasurementKind.RELEASE else (other, one)
    if release.kind is not MeasurementKind.RELEASE:
        raise EvidenceError(
            "measurement_combination", f"{one.kind.name} and {other.kind.name} share no register"
        )
    if guest.kind is MeasurementKind.SNP:
        _require_equal(release.registers[_SNP : _SNP + 1], guest.registers, "the SNP measurement")
        return
    if guest.registers[_TDX_RTMR3] != _ZERO:
        raise EvidenceError("measurement_rtmr3", "RTMR3 is not zero")
    _require_equal(
        release.registers[_RTMR1 : _RTMR2 + 1],
        guest.registers[_TDX_RTMR1 : _TDX_RTMR2 + 1],
        "RTMR1 or RTMR2",
    )


def _register(text: str) -> bytes:
    try:
        data = bytes.fromhex(text) if text.isascii() and text.isalnum() else b""
    except ValueError:
        data = b""
    if len(data) != _REGISTER_BYTES:
        raise EvidenceError(
            "measurement_malformed", f"a register is not hex of {_REGISTER_BYTES} bytes"
        )
    return data


def _require_equal(these: Sequence[bytes], those: Sequence[bytes], what: str) -> None:
    if tuple(these) != tuple(those):
        raise EvidenceError("measurement_mismatch", f"{what} differs")
