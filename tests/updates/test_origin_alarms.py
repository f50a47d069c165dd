"""Evidence that is of another machine, launch or card: a problem by its own name, with a mend."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from agent.attestation.port import Check, Verdict
from agent.updates.planner.alarms import alarms
from agent.updates.snapshot.rows import read_rows, situation
from simulator.simulated_host import NAME, POLICY, SimulatedHost

EVERY_S = 60.0
GOOD = Verdict(attested=True)


@pytest.fixture
def host() -> Iterator[SimulatedHost]:
    own = dataclasses.replace(POLICY, reverify_s=EVERY_S)
    made = SimulatedHost(evidence=GOOD, policy=own)
    made.serve("v1")
    yield made
    made.close()


def refused(code: str) -> Verdict:
    check = Check(code=code, passed=False, detail="CHIP_ID bb: on 2026-01-01 it was aa")
    return Verdict(attested=False, checks=(check,))


@pytest.mark.parametrize(
    ("code", "problem", "mend"),
    [
        ("chip_id", "chip_changed", f"attest {NAME} --accept-chip"),
        ("report_id", "launch_changed", "relaunch it"),
        ("tls_key_alone", "tls_key_shared", "stop one"),
        ("gpu_alone", "gpu_shared", "stop one"),
        ("evidence_disputed", "evidence_disputed", "stop one"),
        ("gpu_identity", "gpu_changed", "gpus release BDF"),
    ],
)
def test_each_is_told_with_old_and_new_until_it_is_mended(
    host: SimulatedHost, code: str, problem: str, mend: str
) -> None:
    host.evidence = refused(code)
    host.settle(seconds=int(2 * EVERY_S))
    told = alarms_of(host)["origin"]
    assert (told.code, told.severity) == (problem, "error")
    assert "CHIP_ID bb: on 2026-01-01 it was aa" in told.detail
    assert mend in told.mend
    assert alarms_of(host)["attestation"].code == "attestation_lost"
    host.evidence = GOOD
    host.settle(seconds=int(2 * EVERY_S))
    assert "origin" not in alarms_of(host)


def test_evidence_that_is_bad_for_another_reason_is_no_matter_of_its_origin(
    host: SimulatedHost,
) -> None:
    host.evidence = refused("snp_measurement")
    host.settle(seconds=int(2 * EVERY_S))
    assert "origin" not in alarms_of(host)


def alarms_of(host: SimulatedHost):
    rows = host.read(lambda tx: read_rows(tx, NAME))
    assert rows is not None
    return alarms(situation(rows, host.observe()))
