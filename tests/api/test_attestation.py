"""Evidence over the API: the guest's bytes as they came, and our verdict that it cannot write."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import pytest

from agent.attestation.expected import Expected
from agent.attestation.port import Check, Evidence, NotYetError, Verdict
from agent.model.ids import EnclaveId

AT = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
ODD = b'{"format" :\t"v3",  "n": 1.0e0, "b":"\\u0061"}'


def found(document: bytes | None = ODD, **changes: Any) -> Evidence:
    check = Check(code="snp_debug", passed=True, detail="guest policy: forbids debugging")
    values: dict[str, Any] = {
        "verdict": Verdict(attested=True, checks=(check,), simulated=True),
        "expected": Expected(snp_measurement=bytes(48), rtmr2=b"\2" * 48, gpus=1),
        "nonce": "ab" * 32,
        "spki_sha256": "cd" * 32,
        "observed_at": AT,
    }
    return Evidence(document=document, **(values | changes))


async def asked(api: Any, evidence: Evidence, query: str = "") -> Any:
    await api.deploy()
    enclave = api.engine.advance("web").enclave
    api.engine.evidences[EnclaveId(enclave)] = evidence
    return await api.ask("GET", f"/v1/enclaves/{enclave}/attestation{query}")


async def test_evidence_is_answered_byte_for_byte(api) -> None:
    answer = await asked(api, found())
    assert answer.status == 200
    assert ODD.decode() in answer.text
    assert answer.json == {
        "evidence": json.loads(ODD),
        "verdict": {
            "accepted": True,
            "checks": [
                {
                    "code": "snp_debug",
                    "passed": True,
                    "detail": "guest policy: forbids debugging",
                }
            ],
            "simulated": True,
        },
        "expected": {
            "snp_measurement": "00" * 48,
            "rtmr1": None,
            "rtmr2": "02" * 48,
            "host_data": "00" * 32,
            "gpus": 1,
        },
        "nonce": "ab" * 32,
        "spki_sha256": "cd" * 32,
        "observed_at": "2026-01-02T03:04:05Z",
    }


async def test_a_caller_s_nonce_is_passed_on(api) -> None:
    answer = await asked(api, found(), "?nonce=" + "12" * 32)
    assert answer.json["nonce"] == "12" * 32


@pytest.mark.parametrize(
    "document",
    [
        None,
        b"",
        b"<html>",
        b'{},"verdict":{"accepted":true}',
        b'"\xff"',
        b"[" * 100_000 + b"]" * 100_000,
    ],
)
async def test_a_guest_cannot_write_our_own_members(api, document: bytes | None) -> None:
    refused = Verdict(attested=False, checks=(Check(code="x", passed=False, detail="y"),))
    answer = await asked(api, found(document, verdict=refused))
    assert answer.json["evidence"] is None
    assert answer.json["verdict"]["accepted"] is False


async def test_nothing_claimed_is_not_accepted(api) -> None:
    answer = await asked(api, found(verdict=Verdict(attested=None)))
    assert answer.json["verdict"] == {"accepted": False, "checks": [], "simulated": False}


async def test_evidence_that_is_not_there_yet_is_to_be_asked_for_again(api) -> None:
    await api.deploy()
    enclave = api.engine.advance("web").enclave

    async def not_yet(enclave_id: EnclaveId, nonce: bytes | None) -> Evidence:
        raise NotYetError("the guest has no evidence yet (503)")

    api.engine.evidence = not_yet
    answer = await api.ask("GET", f"/v1/enclaves/{enclave}/attestation")
    assert (answer.status, answer.json["code"]) == (503, "evidence_not_yet")
    assert answer.headers["Retry-After"] == "2"
