"""What verifies comes with the evidence that needs it: a host pays for no other vendor's."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from agent.attestation.appraisal import EvidenceQuestion
from tests.attestation.refusals import GOOD
from tests.fakes.tdx_guest import TdxGuest, gpu_item, intel, nvidia

TDX = TdxGuest()
VENDORS = ("agent.attestation.snp", "agent.attestation.tdx", "agent.attestation.gpu", "dcap_qvl")

# Judges the document that it is given, and says which verifiers it has loaded for that.
JUDGE = """
import datetime as dt, json, sys
from agent.attestation.opening import open_verifier
from agent.attestation.policy import EvidencePolicy
from agent.attestation.roots import Trust
from agent.attestation.expected import Expected
from agent.config import AttestationConfig
from simulator.manual_clock import ManualClock
open_verifier(AttestationConfig(), ManualClock())
before = sorted(sys.modules)
given = json.load(sys.stdin)
from agent.attestation.appraisal import EvidenceQuestion, appraise, read_document
from agent.attestation.snp_tcb import Product
nonce = bytes.fromhex(given["nonce"])
document = read_document(given["body"].encode(), nonce)
question = EvidenceQuestion(nonce=nonce, spki_sha256="", expected=Expected(gpus=given["gpus"]),
                            now=dt.datetime.fromisoformat(given["now"]))
amd = {root: Product(name) for root, name in given["amd"].items()}
trust = Trust(simulated=amd, intel=given["intel"], nvidia=given["nvidia"])
verdict = appraise(document, question, EvidencePolicy(config=AttestationConfig()), trust)
print(json.dumps({"before": before, "after": sorted(sys.modules),
                  "checks": [check.code for check in verdict.checks]}))
"""


def judged(
    body: bytes, question: EvidenceQuestion, gpus: int = 0
) -> tuple[set[str], set[str], set[str]]:
    """Whose verifiers were loaded before, whose after, and the codes of the checks."""
    given = {
        "body": body.decode(),
        "nonce": question.nonce.hex(),
        "now": question.now.isoformat(),
        "amd": dict(GOOD.amd.trust.simulated),
        "intel": intel().root,
        "nvidia": nvidia().root,
        "gpus": gpus,
    }
    done = subprocess.run(
        [sys.executable, "-c", JUDGE],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    said = json.loads(done.stdout)
    return loaded(said["before"]), loaded(said["after"]), set(said["checks"])


def loaded(modules: list[str]) -> set[str]:
    """`snp` by the module that verifies: values of reports come with the gate."""
    return {
        vendor
        for vendor in VENDORS
        for name in modules
        if name == vendor or name.startswith(f"{vendor}.")
    }


def asked(guest: object) -> EvidenceQuestion:
    return EvidenceQuestion(
        nonce=guest.nonce, spki_sha256="", expected=guest.expected, now=guest.now
    )


SNP, TDX_ITSELF, GPU, LIBRARY = VENDORS


@pytest.mark.parametrize(
    ("guest", "gpus", "needed", "code"),
    [
        (GOOD, 0, {SNP}, "snp_signature"),
        (TDX, 0, {TDX_ITSELF, LIBRARY}, "tdx_signature"),
        (
            TDX.but(items=lambda: [gpu_item(1)]),
            1,
            {TDX_ITSELF, LIBRARY, GPU},
            "gpu_count",
        ),
    ],
    ids=["SNP", "TDX", "TDX with a GPU"],
)
def test_only_what_the_evidence_needs_is_loaded_and_nothing_before_it(
    guest: object, gpus: int, needed: set[str], code: str
) -> None:
    before, after, checks = judged(guest.v3(), asked(guest), gpus)
    assert before == set()
    assert after == needed
    assert code in checks


def test_the_quote_library_is_not_imported_with_the_verifier() -> None:
    script = "import sys, agent.attestation.tdx.verify; sys.exit('dcap_qvl' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
