"""`enclave-agent attest`: what was proven, by whom, until when; a refusal is an exit code."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import msgspec
import pytest

from agent.attestation.port import Evidence
from agent.cli.exits import Exit
from agent.model.ids import EnclaveId
from tests.attestation.refusals import GOOD, says
from tests.fakes.attested_guest import Guest
from tests.fakes.snp_chain import NOW

AT = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)


def show(agent: Any, guest: Guest) -> Evidence:
    agent.running()
    found = Evidence(
        document=guest.v3(),
        verdict=guest.judged(guest.v3()),
        expected=guest.expected,
        nonce=guest.asked.hex(),
        spki_sha256=guest.shown_spki,
        observed_at=AT,
    )

    def put(engine: Any) -> None:
        (enclave,) = engine.snapshot.deployments["web"].enclaves
        engine.evidences[EnclaveId(enclave.row.id)] = found

    agent.api.do(put)
    return found


def test_good_evidence_is_told_check_by_check(agent) -> None:
    found = show(agent, GOOD)
    result = agent.call("attest", "web")
    assert result.exit_code == Exit.DONE
    assert "SIMULATED — NOT CONFIDENTIAL" in result.stdout
    assert "verdict   attested" in result.stdout
    for check in found.verdict.checks:
        assert check.code in result.stdout
        assert check.detail in result.stdout
    assert "FAILED" not in result.stdout


def test_bad_evidence_is_told_and_fails(agent) -> None:
    show(agent, says(policy=0x30000 | 1 << 19))
    result = agent.call("attest", "web")
    assert result.exit_code == Exit.FAILED
    assert "NOT ATTESTED" in result.stdout
    assert "FAILED" in result.stdout
    assert result.stderr == "error: web is not attested: snp_debug\n"


def test_what_was_not_checked_is_never_told_as_ok_and_collateral_has_its_date(agent) -> None:
    found = show(agent, GOOD.but(crls=lambda: ()))
    text = agent.call("attest", "web").stdout
    lines = text.splitlines()
    left_out = [check.code for check in found.verdict.checks if not check.checked]
    assert "snp_revocation" in left_out
    for code in left_out:
        (line,) = [one for one in lines if one.startswith(code)]
        assert "not checked" in line
        assert " ok " not in line
    assert f"left out  {', '.join(left_out)}" in text
    (vcek,) = [one for one in lines if one.startswith("AMD VCEK")]
    used = next(one for one in found.verdict.collateral if one.kind == "AMD VCEK")
    assert used.issued is not None
    assert used.until is not None
    assert f"{used.issued:%Y-%m-%d}" in vcek
    assert f"{used.until:%Y-%m-%d}" in vcek


def test_a_revocation_list_is_told_by_number_and_date(agent) -> None:
    show(agent, GOOD.but(crls=lambda: (GOOD.amd.crl(number=9),)))
    text = agent.call("attest", "web").stdout
    (line,) = [one for one in text.splitlines() if one.startswith("AMD revocation list")]
    assert "number 9" in line
    assert f"{NOW - dt.timedelta(days=1):%Y-%m-%d}" in line


def test_another_processor_is_accepted_on_the_host(agent) -> None:
    agent.running()
    result = agent.call("attest", "web", "--accept-chip")
    assert result.exit_code == Exit.DONE
    assert "CHIP_ID: aa -> bb" in result.stdout
    assert agent.call("attest", "nobody", "--accept-chip").exit_code == Exit.UNKNOWN_NAME
    result = agent.call("attest", "web", "--accept-chip", "--nonce", "12" * 32)
    assert result.exit_code == Exit.USAGE


def test_all_of_it_is_told_as_json(agent) -> None:
    found = show(agent, GOOD)
    result = agent.call("attest", "web", "-o", "json", "--nonce", "12" * 32)
    assert result.exit_code == Exit.DONE
    shown = json.loads(result.stdout)
    assert found.document is not None
    assert shown["evidence"] == json.loads(found.document)
    assert shown["nonce"] == "12" * 32
    assert len(shown["verdict"]["checks"]) == len(found.verdict.checks)


@pytest.mark.parametrize("nonce", ["", "12", "AB" * 32, "12" * 33, "zz" * 32])
def test_a_nonce_has_one_form(agent, nonce: str) -> None:
    result = agent.call("attest", "web", "--nonce", nonce)
    assert result.exit_code == Exit.USAGE
    assert "64 digits" in result.stderr


def test_what_a_guest_writes_cannot_move_the_cursor(agent) -> None:
    found = show(agent, GOOD)
    first, *rest = found.verdict.checks
    odd = msgspec.structs.replace(first, detail="\x1b[2Jgone")
    verdict = msgspec.structs.replace(found.verdict, checks=(odd, *rest))
    spoiled = msgspec.structs.replace(found, verdict=verdict)
    agent.api.do(lambda engine: engine.evidences.update(dict.fromkeys(engine.evidences, spoiled)))
    assert "\x1b" not in agent.call("attest", "web").stdout
