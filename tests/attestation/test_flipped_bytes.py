"""Every byte of everything that is signed or checked, flipped: never accepted, never a crash."""

from __future__ import annotations

import base64
import json

import pytest

from agent.attestation.appraisal import read_document
from agent.attestation.collateral import Endorsements
from agent.attestation.document_v2 import unpack
from agent.attestation.evidence import EvidenceError
from agent.attestation.roots import Trust
from agent.attestation.snp import verify_report
from agent.attestation.snp_report import SIGNED_BYTES
from agent.config import AttestationConfig
from tests.attestation.refusals import GOOD, MILAN
from tests.fakes import vectors
from tests.fakes.attested_guest import NONCE
from tests.fakes.snp_chain import NOW
from tests.fakes.vectors import needs_vectors


def accepted(report: bytes, given: Endorsements, trust: Trust) -> bool:
    try:
        verify_report(report, given, trust, NOW)
    except EvidenceError:
        return False
    return True


def flips(data: bytes) -> list[bytes]:
    return [
        data[:at] + bytes((data[at] ^ (1 << at % 8),)) + data[at + 1 :] for at in range(len(data))
    ]


@needs_vectors
def test_no_byte_of_a_genuine_report_can_be_another_one() -> None:
    case = vectors.case_input("attestation-sev", "200-real-sev-snp-happy")
    ask, ark = vectors.pem("roots/ask_ark_genoa.pem")
    leaf = base64.b64decode(case["vcek_der_b64"])
    given = Endorsements(leaf=leaf, ask=ask, ark=ark)
    report = unpack(base64.b64decode(case["attestation_doc_b64"]))
    assert accepted(report, given, Trust())
    flipped = flips(report)
    assert len(flipped) > SIGNED_BYTES
    assert not any(accepted(one, given, Trust()) for one in flipped)


def test_a_signature_s_twin_is_as_good_as_itself() -> None:
    """(r, n − s) verifies where (r, s) does: nothing may be keyed by the bytes of evidence."""
    order = int(
        "ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973",
        16,
    )
    report = bytearray(MILAN.report())
    s = int.from_bytes(report[0x2E8:0x330], "little")
    report[0x2E8:0x330] = (order - s).to_bytes(72, "little")
    assert accepted(bytes(report), MILAN.endorsements, MILAN.trust)
    report[0x2E8:0x330] = (order - s - 1).to_bytes(72, "little")
    assert not accepted(bytes(report), MILAN.endorsements, MILAN.trust)


@pytest.mark.parametrize("part", ["leaf", "ask", "ark"])
def test_no_byte_of_a_certificate_can_be_another_one(part: str) -> None:
    good = MILAN.endorsements
    report = MILAN.report()
    parts = {"leaf": good.leaf, "ask": good.ask, "ark": good.ark}
    assert accepted(report, good, MILAN.trust)
    for one in flips(parts[part]):
        given = Endorsements(**(parts | {part: one}))
        assert not accepted(report, given, MILAN.trust)


def test_no_byte_of_a_revocation_list_can_be_another_one() -> None:
    good = MILAN.endorsements
    for one in flips(MILAN.crl(5)):
        given = Endorsements(leaf=good.leaf, ask=good.ask, ark=good.ark, crls=(one,))
        assert not accepted(MILAN.report(), given, MILAN.trust)


def test_a_document_that_is_accepted_with_a_flipped_byte_says_the_same() -> None:
    """Names of collateral may change; what is proved may not. No unexpected exception ever."""
    body = GOOD.v3()
    said = json.loads(body)
    changeable = 0
    for one in flips(body):
        if GOOD.judged(one).attested:
            changeable += 1
            now = json.loads(one)
            del now["collateral"], (before := dict(said))["collateral"]
            assert now == before
    assert changeable < 40


def test_an_old_document_that_is_accepted_with_a_flipped_byte_holds_the_same_report() -> None:
    """The header of its gzip says when it was packed; that may change."""
    guest = GOOD.but(config=AttestationConfig(allow_unfresh=True))
    body = guest.v2()
    given = guest.amd.endorsements
    assert guest.judged(body, given).attested
    report = read_document(body, NONCE).report
    for one in flips(body):
        if guest.judged(one, given).attested:
            assert read_document(one, NONCE).report == report
