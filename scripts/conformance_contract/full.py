"""Stage verify-full: evidence and the measurement that it must be of, together."""

from __future__ import annotations

from typing import Any

from scripts.conformance_contract import measurements, sev, sigstore, tdx
from scripts.conformance_contract.inputs import FullInput, HardwareInput, Registers
from scripts.conformance_contract.outcome import Accepted, Malformed, Rejected

HARDWARE_STAGE = "verify-hardware-measurements"


def verify(given: FullInput) -> Accepted:
    """Evidence of what was pinned, or of what was signed; on TDX on a platform that is listed.

    The flows `standard` and `bundle` differ in how their parts are got, which is not asked here.
    """
    wanted, signed = _wanted(given)
    platform, shown = _evidence(given)
    registers = Registers(type=shown["type"], registers=tuple(shown["registers"]))
    attested = measurements.read(registers)
    outputs: dict[str, Any] = {"mode": given.mode, "platform": platform}
    if signed:
        outputs["sigstore_measurement"] = signed
        if platform == "tdx":
            outputs["matched_hardware"] = _platform(given, registers)
    measurements.compare_both(measurements.read(wanted), attested)
    outputs["attestation_measurement"] = shown
    outputs["final_measurement_fingerprint_hex"] = attested.fingerprint()
    return Accepted(outputs)


def _wanted(given: FullInput) -> tuple[Registers, dict[str, Any]]:
    """What the evidence must be of; and, if it was signed, how that is shown."""
    if given.mode == "pinned":
        if given.pinned_measurement is None:
            raise Malformed("pinned_measurement: mode pinned needs it")
        return given.pinned_measurement, {}
    if given.sigstore is None:
        raise Malformed(f"sigstore: mode {given.mode} needs it")
    try:
        signed = sigstore.believe(given.sigstore).measurement
        if signed is None:
            raise Rejected("PREDICATE_MEASUREMENT_INVALID", "what is signed is no measurement")
    except Rejected as rejected:
        raise Rejected(rejected.code, rejected.detail, sigstore.STAGE) from rejected
    return Registers(type=signed["type"], registers=tuple(signed["registers"])), signed


def _platform(given: FullInput, attested: Registers) -> dict[str, str]:
    """The entry of the hardware list that the quote is of."""
    asked = HardwareInput(
        schema_version="1",
        enclave_measurement=attested,
        hardware_measurements=given.hardware_measurements,
    )
    try:
        found = measurements.verify_hardware(asked).outputs
    except Rejected as rejected:
        raise Rejected(rejected.code, rejected.detail, HARDWARE_STAGE) from rejected
    return {name: found[f"matched_{name}"] for name in ("id", "mrtd", "rtmr0")}


def _evidence(given: FullInput) -> tuple[str, dict[str, Any]]:
    """The platform, and what its evidence measures."""
    one, other = given.attestation_sev, given.attestation_tdx
    if one is not None and other is None:
        stage, platform = sev.STAGE, "sev-snp"
    elif other is not None and one is None:
        stage, platform = tdx.STAGE, "tdx"
    else:
        raise Malformed("attestation_sev, attestation_tdx: exactly one is needed")
    try:
        if one is not None:
            return platform, sev.shown(sev.believe(one))
        assert other is not None
        return platform, tdx.shown(tdx.believe(other))
    except Rejected as rejected:
        raise Rejected(rejected.code, rejected.detail, stage) from rejected
