"""The stages of the contract by their names, and the answer to one of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from scripts.conformance_contract import full, inputs, measurements, sev, sigstore, tdx
from scripts.conformance_contract.capabilities import capabilities
from scripts.conformance_contract.outcome import (
    Accepted,
    Exit,
    Malformed,
    Rejected,
    Unsupported,
)

# The input's type, and what judges it.
STAGES: dict[str, tuple[type[Any], Callable[[Any], Accepted]]] = {
    sev.STAGE: (inputs.SevInput, sev.verify),
    tdx.STAGE: (inputs.TdxInput, tdx.verify),
    measurements.MEASUREMENT_STAGE: (inputs.MeasurementInput, measurements.verify_measurement),
    full.HARDWARE_STAGE: (inputs.HardwareInput, measurements.verify_hardware),
    "verify-ehbp-key-binding": (inputs.KeyBindingInput, measurements.verify_key_binding),
    sigstore.STAGE: (inputs.SigstoreInput, sigstore.verify),
    "verify-full": (inputs.FullInput, full.verify),
}


@dataclass(frozen=True, slots=True)
class Answer:
    """`output`: for standard output; None where the contract has nothing for it. `note`: why."""

    exit: Exit
    output: dict[str, Any] | None = None
    note: str = ""


def answer(stage: str, raw: bytes) -> Answer:
    """The verdict on one input. Never raises but for a defect of ours."""
    if stage == "capabilities":
        return Answer(Exit.ACCEPTED, capabilities(list(STAGES)))
    if stage not in STAGES:
        return Answer(Exit.UNSUPPORTED, note=f"{stage}: no such stage here")
    kind, verify = STAGES[stage]
    try:
        accepted = verify(inputs.read_input(raw, kind))
    except Rejected as rejected:
        return Answer(Exit.REJECTED, _rejection(stage, rejected), rejected.detail)
    except Unsupported as unsupported:
        return Answer(Exit.UNSUPPORTED, note=str(unsupported))
    except Malformed as malformed:
        return Answer(Exit.MALFORMED, note=str(malformed))
    output = {"stage": stage, "accepted": True, "outputs": accepted.outputs}
    return Answer(Exit.ACCEPTED, output)


def _rejection(stage: str, rejected: Rejected) -> dict[str, Any]:
    told: dict[str, str] = {"code": rejected.code}
    if stage == "verify-full":
        told |= {"stage": rejected.stage or stage, "message": rejected.detail}
    return {"stage": stage, "accepted": False, "rejection": told}
