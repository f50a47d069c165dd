"""`check-config --against-running`: what runs, judged by another file and version beforehand."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import pytest

from agent.attestation.policy import EvidencePolicy
from agent.attestation.port import Evidence
from agent.attestation.roots import Trust
from agent.attestation.snp_tcb import Product, Signer
from agent.attestation.verifier import Verifier
from agent.cli import against_running
from agent.cli.exits import Exit
from agent.config import AttestationConfig, Config, SignerRule, SnpConfig
from agent.model.evidence_edition import FIRST_EVIDENCE_EDITION, FLOORS_EDITION
from agent.model.ids import EnclaveId
from tests.attestation.refusals import GOOD, says
from tests.fakes.attested_guest import Guest
from tests.fakes.evidence_guest import Clock
from tests.fakes.snp_chain import FakeAmd, tcb_bytes

AT = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
OLD = says(launch_tcb=tcb_bytes(Product.MILAN, snp=20))


def show(agent: Any, guest: Guest, edition: int | None = None) -> None:
    """The running agent has this evidence of its one enclave; an older one tells no edition."""
    agent.running()
    found = Evidence(
        document=guest.v3(),
        verdict=guest.judged(guest.v3()),
        expected=guest.expected,
        nonce=guest.asked.hex(),
        spki_sha256=guest.shown_spki,
        observed_at=AT,
        edition=edition,
    )

    def put(engine: Any) -> None:
        (enclave,) = engine.snapshot.deployments["web"].enclaves
        engine.evidences[EnclaveId(enclave.row.id)] = found

    agent.api.do(put)


@pytest.fixture(autouse=True)
def gate(monkeypatch: pytest.MonkeyPatch) -> None:
    """The vendor is the tests', and the time is theirs."""

    def open_gate(config: Config, *, simulated: bool) -> Verifier:
        assert simulated
        policy = EvidencePolicy(config=config.attestation, allow_simulated=True)
        trust: Trust = GOOD.amd.trust
        return Verifier(policy=policy, trust=trust, clock=Clock())

    monkeypatch.setattr(against_running, "_gate", open_gate)


def check(agent: Any, tmp_path: Path, text: str = "") -> tuple[int, list[str]]:
    path = tmp_path / "next.yaml"
    path.write_text(f"tee: simulated\n{text}")
    result = agent.call("check-config", str(path), "--against-running")
    good, *lines = result.stdout.splitlines()
    assert good == f"{path}: good"
    return result.exit_code, lines


def test_what_would_be_admitted_is_told(agent: Any, tmp_path: Path) -> None:
    show(agent, GOOD)
    assert check(agent, tmp_path) == (Exit.DONE, ["web: would be admitted"])


def test_what_became_too_old_is_told_before_the_upgrade(agent: Any, tmp_path: Path) -> None:
    show(agent, OLD)
    code, (line,) = check(agent, tmp_path)
    assert code == Exit.FAILED
    assert line.startswith("web: policy_stricter: keeps its traffic, and nothing new would be")
    assert "snp_launch_tcb: launch TCB: snp 20, at least 24 (AMD-SB-3019" in line
    floors = "attestation: {snp: {minimum: {snp: 20}}}\n"
    assert check(agent, tmp_path, floors) == (Exit.DONE, ["web: would be admitted"])


@pytest.mark.parametrize(
    ("edition", "told"),
    [
        (FIRST_EVIDENCE_EDITION, "web: policy_stricter: keeps its traffic"),
        (FLOORS_EDITION, "web: would lose its attestation: snp_author_key_digest: "),
    ],
)
def test_a_pin_that_a_file_gives_up_costs_whom_the_defaults_never_let_pass_without(
    agent: Any, tmp_path: Path, edition: int, told: str
) -> None:
    """Each enclave is judged by the defaults that it was admitted by, not by the oldest ones."""
    pinned = SnpConfig(author_key_digest="ab" * 48)
    signed = GOOD.but(
        fields={"author_key_digest": b"\xab" * 48},
        config=AttestationConfig(snp=pinned),
    )
    show(agent, signed, edition)
    code, (line,) = check(agent, tmp_path)
    assert code == Exit.FAILED
    assert line.startswith(told)


def test_what_a_file_itself_asks_for_is_no_default(agent: Any, tmp_path: Path) -> None:
    show(agent, GOOD)
    code, (line,) = check(agent, tmp_path, "attestation: {snp: {allow_smt: false}}\n")
    assert code == Exit.FAILED
    assert line.startswith("web: would lose its attestation: snp_smt: ")


def test_a_file_that_asks_for_the_chip_s_name_is_held_against_evidence_without_one(
    agent: Any, tmp_path: Path
) -> None:
    vlek = GOOD.but(
        amd=FakeAmd(signer=Signer.VLEK),
        fields={"chip_id": bytes(64)},
        config=AttestationConfig(snp=SnpConfig(signer=SignerRule.VLEK)),
    )
    show(agent, vlek)
    rule = "attestation: {%ssnp: {signer: vlek}}\n"
    assert check(agent, tmp_path, rule % "") == (Exit.DONE, ["web: would be admitted"])
    code, (line,) = check(agent, tmp_path, rule % "require_chip_id: true, ")
    assert code == Exit.FAILED
    assert line.startswith("web: would lose its attestation: chip_id: ")


def test_evidence_that_names_its_chip_is_good_enough_for_who_asks_for_it(
    agent: Any, tmp_path: Path
) -> None:
    show(agent, GOOD)
    assert check(agent, tmp_path, "attestation: {require_chip_id: true}\n")[0] == Exit.DONE


def test_without_evidence_there_is_nothing_to_judge(agent: Any, tmp_path: Path) -> None:
    agent.running()
    code, (line,) = check(agent, tmp_path)
    assert code == Exit.DONE
    assert line.startswith("web: no evidence to judge: ")


def test_a_wrong_file_is_told_before_anything_is_asked(agent: Any, tmp_path: Path) -> None:
    path = tmp_path / "next.yaml"
    path.write_text("nonsense: 1\n")
    result = agent.call("check-config", str(path), "--against-running")
    assert (result.exit_code, result.stdout) == (Exit.USAGE, "")
