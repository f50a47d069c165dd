"""Stages verify-measurement, verify-hardware-measurements and verify-ehbp-key-binding."""

from __future__ import annotations

from agent.attestation.document import keys_in_report_data
from agent.attestation.evidence import EvidenceError
from agent.attestation.measurement import (
    Measurement,
    MeasurementKind,
    compare,
    read_measurement,
)
from agent.attestation.policy_document import check_hpke_key
from agent.attestation.tdx.platforms import endorsed_platform, match_platform
from agent.attestation.tdx.registers import registers_from_hex
from scripts.conformance_contract.inputs import (
    HardwareInput,
    KeyBindingInput,
    MeasurementInput,
    Registers,
    from_hex,
)
from scripts.conformance_contract.outcome import Accepted, Malformed, Rejected, rejection

MEASUREMENT_STAGE = "verify-measurement"
CODES = {
    "measurement_kind": "MEASUREMENT_TYPE_UNKNOWN",
    "measurement_registers": "MEASUREMENT_REGISTER_COUNT_INVALID",
    "measurement_combination": "MEASUREMENT_TYPE_COMBINATION_UNSUPPORTED",
    "measurement_mismatch": "MEASUREMENT_MISMATCH",
    "measurement_rtmr3": "MEASUREMENT_RTMR3_NONZERO",
}


def verify_measurement(given: MeasurementInput) -> Accepted:
    """Fingerprints; and that both are of the same software, where there are two."""
    source = read(given.source)
    target = read(given.target) if given.target else None
    if target is not None:
        compare_both(source, target)
    return Accepted(
        {
            "source_fingerprint_hex": source.fingerprint(),
            "target_fingerprint_hex": target.fingerprint() if target else None,
        }
    )


def read(given: Registers) -> Measurement:
    """Raises Rejected; Malformed for registers that are no hex of their size."""
    try:
        return read_measurement(given.type, given.registers)
    except EvidenceError as error:
        if error.code == "measurement_malformed":
            raise Malformed(str(error)) from error
        raise _rejected(error) from error


def compare_both(one: Measurement, other: Measurement) -> None:
    """Raises Rejected unless both are of the same software."""
    try:
        compare(one, other)
    except EvidenceError as error:
        raise _rejected(error) from error


def verify_hardware(given: HardwareInput) -> Accepted:
    """The first platform of the list with the enclave's MRTD and RTMR0."""
    enclave = given.enclave_measurement
    if enclave.type != MeasurementKind.TDX:
        raise Rejected("ENCLAVE_MEASUREMENT_TYPE_INVALID", f"type {enclave.type!r} is not TDX's")
    if len(enclave.registers) != 5:
        count = len(enclave.registers)
        raise Rejected("ENCLAVE_REGISTER_COUNT_INVALID", f"{count} registers, not 5")
    try:
        registers = registers_from_hex(enclave.registers)
        listed = [
            endorsed_platform(one.id, one.mrtd, one.rtmr0) for one in given.hardware_measurements
        ]
    except EvidenceError as error:
        raise Malformed(str(error)) from error
    match = match_platform(listed, registers.mrtd, registers.rtmr0)
    if match is None:
        raise Rejected("HARDWARE_NO_MATCH", f"none of {len(listed)} platforms has both registers")
    return Accepted(
        {
            "matched_id": match.name,
            "matched_mrtd": match.mrtd.hex(),
            "matched_rtmr0": match.rtmr0.hex(),
        }
    )


def verify_key_binding(given: KeyBindingInput) -> Accepted:
    """The key that is offered is the one that report data carries."""
    try:
        keys = keys_in_report_data(from_hex(given.report_data_hex, "report_data_hex"))
        name = "offered_hpke_public_key_hex"
        offered = from_hex(given.offered_hpke_public_key_hex, name)
        check = check_hpke_key(keys, offered)
    except EvidenceError as error:
        raise Malformed(str(error)) from error
    if not check.passed:
        raise Rejected("EHBP_KEY_BINDING_MISMATCH", check.detail)
    return Accepted(
        {
            "attested_hpke_public_key_hex": offered.hex(),
            "tls_fingerprint_hex": keys.tls_spki_sha256.hex(),
        }
    )


def _rejected(error: EvidenceError) -> Rejected:
    other = CODES["measurement_mismatch"]
    return rejection(CODES, error.code, str(error), other=other, stage=MEASUREMENT_STAGE)
