"""`scripts/verify-evidence`: a saved document judged offline, as of when it was seen."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.api.attestation_view import attestation_answer
from agent.attestation.port import Evidence
from scripts import saved_evidence
from tests.attestation.refusals import GOOD
from tests.fakes.attested_guest import Guest
from tests.fakes.snp_chain import NOW

ROOT = Path(__file__).parents[2]
BELIEVED = ("--simulated-root", GOOD.amd.root_spki_sha256)


def saved(guest: Guest) -> bytes:
    """What `enclave-agent attest NAME -o json` prints."""
    body = guest.v3()
    found = Evidence(
        document=body,
        verdict=guest.judged(body),
        expected=guest.expected,
        nonce=guest.asked.hex(),
        spki_sha256=guest.shown_spki,
        observed_at=NOW,
    )
    return msgspec.json.encode(attestation_answer(found))


@pytest.fixture
def judge(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Judges these bytes; gives the exit code, standard output and standard error."""

    def run(raw: bytes, *options: str) -> tuple[int, str, str]:
        path = tmp_path / "saved.json"
        path.write_bytes(raw)
        code = saved_evidence.main([str(path), *options])
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


def checks(out: str) -> dict[str, dict[str, Any]]:
    return {one["code"]: one for one in json.loads(out)["verdict"]["checks"]}


def test_what_attest_saved_is_judged_again_as_of_then(judge: Any) -> None:
    code, out, _ = judge(saved(GOOD), *BELIEVED)
    assert code == 0
    assert "verdict       attested" in out
    assert f"judged as of  {NOW:%Y-%m-%d %H:%M:%S} UTC" in out
    assert "snp_measurement" in out
    (line,) = [one for one in out.splitlines() if one.startswith("origin_not_checked")]
    assert "not checked" in line


def test_a_verdict_that_somebody_wrote_into_the_file_is_nobody_s_word(judge: Any) -> None:
    other = GOOD.but(fields={"measurement": bytes(48)})
    answer = json.loads(saved(other))
    answer["verdict"] |= {"accepted": True, "checks": []}
    code, out, _ = judge(json.dumps(answer).encode(), *BELIEVED)
    assert code == 1
    assert "NOT ATTESTED" in out


def test_no_root_is_believed_that_was_not_named(judge: Any) -> None:
    code, out, _ = judge(saved(GOOD), "-o", "json")
    assert code == 1
    assert not checks(out)["root_unknown"]["passed"]


@pytest.mark.parametrize(("moment", "code"), [("2026-06-01", 0), ("2031-01-01T00:00:00+00:00", 1)])
def test_another_moment_may_be_asked_for(judge: Any, moment: str, code: int) -> None:
    assert judge(saved(GOOD), *BELIEVED, "--at", moment)[0] == code


def test_of_a_guest_s_own_answer_what_it_says_itself_is_not_checked(judge: Any) -> None:
    at = ("--at", NOW.isoformat(), "-o", "json")
    code, out, _ = judge(GOOD.v3(), *BELIEVED, *at)
    found = checks(out)
    assert code == 1, "there is no release to hold it against"
    assert not found["snp_measurement"]["passed"]
    for name in ("evidence_fresh", "tls_key"):
        assert found[name]["checked"] is False
    given = ("--nonce", GOOD.nonce.hex(), "--tls-key", GOOD.spki)
    found = checks(judge(GOOD.v3(), *BELIEVED, *at, *given)[1])
    for name in ("evidence_fresh", "tls_key"):
        assert found[name]["passed"]
        assert "checked" not in found[name]
    wrong = ("--nonce", GOOD.nonce.hex(), "--tls-key", "ab" * 32)
    assert not checks(judge(GOOD.v3(), *BELIEVED, *at, *wrong)[1])["tls_key"]["passed"]


def test_a_policy_is_taken_from_a_configuration(judge: Any, tmp_path: Path) -> None:
    config = tmp_path / "agent.yaml"
    config.write_text("attestation: {snp: {allow_smt: false}}\n")
    code, out, _ = judge(saved(GOOD), *BELIEVED, "--config", str(config), "-o", "json")
    assert code == 1
    assert [name for name, one in checks(out).items() if not one["passed"]] == ["snp_smt"]


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "is no JSON object"),
        (b"[]", "is no JSON object"),
        (b'{"format": ' + b"[" * 60_000 + b"]" * 60_000 + b"}", "nested deeper"),
        (rb'{"format": "\ud800"}', "half of a surrogate pair"),
        (b"{}", "document_malformed"),
        (b'{"format": "x"}', "document_format"),
        (b'{"evidence": null, "verdict": 1, "expected": {}}', "no answer of `attest -o json`"),
    ],
)
def test_what_is_no_evidence_is_a_wrong_use(judge: Any, raw: bytes, words: str) -> None:
    code, out, err = judge(raw)
    assert (code, out) == (2, "")
    assert words in err


def test_collateral_that_a_document_lacks_is_read_from_a_directory_and_asked_of_nobody(
    judge: Any, tmp_path: Path
) -> None:
    def without(document: dict[str, Any]) -> None:
        document["collateral"] = []

    raw = saved(GOOD.but(change=without))
    code, out, _ = judge(raw, "-o", "json", "--collateral", str(tmp_path / "none"))
    assert code == 1
    assert not checks(out)["endorsement_missing"]["passed"]


def test_the_program_ends_as_the_function_does(tmp_path: Path) -> None:
    path = tmp_path / "saved.json"
    path.write_bytes(b"{}")
    done = subprocess.run(
        [sys.executable, "-m", "scripts.saved_evidence", path],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=120,
    )
    assert done.returncode == 2
    assert "document_malformed" in done.stderr
