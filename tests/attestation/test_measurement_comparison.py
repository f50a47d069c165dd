"""Measurements are compared across platforms as the public contract says."""

from __future__ import annotations

import pytest

from agent.attestation.evidence import EvidenceError
from agent.attestation.measurement import MeasurementKind, compare, read_measurement

A, B = "aa" * 48, "bb" * 48


@pytest.mark.parametrize(
    ("code", "kind", "registers"),
    [
        ("measurement_kind", "https://example/other", [A]),
        ("measurement_registers", MeasurementKind.SNP, []),
        ("measurement_registers", MeasurementKind.TDX, [A] * 4),
        ("measurement_malformed", MeasurementKind.SNP, [A[2:]]),
        ("measurement_malformed", MeasurementKind.SNP, [A[:-1]]),
        ("measurement_malformed", MeasurementKind.SNP, [" " + A[1:]]),
        ("measurement_malformed", MeasurementKind.SNP, ["g" * 96]),
    ],
)
def test_a_measurement_has_its_registers(code: str, kind: str, registers: list[str]) -> None:
    with pytest.raises(EvidenceError) as caught:
        read_measurement(kind, registers)
    assert caught.value.code == code


@pytest.mark.parametrize("place", range(5))
def test_of_a_tdx_guest_the_platform_s_registers_are_not_compared(place: int) -> None:
    release = read_measurement(MeasurementKind.RELEASE, [A, A, A])
    registers = [A, A, A, A, "00" * 48]
    registers[place] = B
    guest = read_measurement(MeasurementKind.TDX, registers)
    if place < 2:
        compare(release, guest)
        compare(guest, release)
        return
    with pytest.raises(EvidenceError, match="RTMR"):
        compare(guest, release)
