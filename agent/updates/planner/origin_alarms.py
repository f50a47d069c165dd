"""What is wrong with where evidence comes from: told by a name of its own, with old and new. Pure.

Of any enclave that is there, also of one that has yet to take traffic.
"""

from __future__ import annotations

from agent.attestation.recognition import CHIP_ID, KEY_ALONE, REPORT_ID
from agent.attestation.recognition_devices import DEVICES, DEVICES_ALONE
from agent.updates.planner.alarm import Alarm
from agent.updates.planner.attestation import DISPUTED
from agent.updates.planner.types import Situation

_TWO = "find out which of them has it from the other; stop one, and the other is believed again"
_ANSWERED = "somebody else answered in its place: find out who, or relaunch it"
_PROBLEMS = {
    CHIP_ID: (
        "chip_changed",
        "if the host's processor was replaced: `enclave-agent attest {name} --accept-chip`; else "
        "its guest runs on another machine",
    ),
    REPORT_ID: ("launch_changed", _ANSWERED),
    KEY_ALONE: ("tls_key_shared", _TWO),
    DEVICES_ALONE: ("gpu_shared", _TWO),
    DISPUTED: ("evidence_disputed", _TWO),
    DEVICES: (
        "gpu_changed",
        "if a card was replaced: `enclave-agent gpus release BDF` for its place, and its "
        "certificate is learned anew",
    ),
}


def misgivings(s: Situation) -> Alarm | None:
    """The first that holds, by the order of the table; None: none does."""
    for code, (problem, mend) in _PROBLEMS.items():
        for row in s.enclaves.values():
            judged = s.verdicts.get(row.id)
            if judged is None or judged.verdict.attested is not False:
                continue
            failed = [one for one in judged.verdict.checks if one.code == code and not one.passed]
            if failed:
                name = s.deployment.name
                return Alarm(
                    code=problem,
                    severity="error",
                    detail=f"{name}: evidence of enclave {row.id}: {failed[0].detail}",
                    mend=mend.format(name=name),
                )
    return None
