"""Evidence decides: before Ready, while it waits, after the switch, as long as it serves."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import msgspec
import pytest

from agent.attestation.port import Check, Verdict
from agent.model.evidence_edition import EVIDENCE_EDITION, FIRST_EVIDENCE_EDITION
from agent.model.update import Step, UpdateStatus
from agent.updates.planner.alarms import alarms
from agent.updates.planner.types import ActionKind
from agent.updates.snapshot.rows import read_rows, situation
from agent.updates.snapshot.status import deployment_status
from simulator.simulated_host import NAME, POLICY, SimulatedHost

GOOD = Verdict(attested=True, checks=(Check(code="snp_signature", passed=True, detail="ok"),))
BAD = Verdict(
    attested=False, checks=(Check(code="snp_measurement", passed=False, detail="another"),)
)
NOT_YET = Verdict(attested=None, retry=True)
EVERY_S = 60.0


def host_with(**policy: object) -> SimulatedHost:
    """Serving v1, whose evidence is good."""
    own = dataclasses.replace(POLICY, reverify_s=EVERY_S, **policy)  # type: ignore[arg-type]
    host = SimulatedHost(evidence=GOOD, policy=own)
    host.serve("v1")
    return host


@pytest.fixture
def host() -> Iterator[SimulatedHost]:
    host = host_with()
    yield host
    host.close()


@pytest.fixture
def strict() -> Iterator[SimulatedHost]:
    """Of whom an enclave that loses its attestation leaves the traffic."""
    host = host_with(drop_on_loss=True)
    yield host
    host.close()


def status(host: SimulatedHost) -> str:
    rows = host.read(lambda tx: read_rows(tx, NAME))
    assert rows is not None
    return str(deployment_status(situation(rows, host.observe()), ()))


def told(host: SimulatedHost) -> set[str]:
    rows = host.read(lambda tx: read_rows(tx, NAME))
    assert rows is not None
    return {alarm.code for alarm in alarms(situation(rows, host.observe())).values()}


def judged(host: SimulatedHost) -> int:
    return sum(action.kind is ActionKind.VERIFY for action in host.log)


def test_refused_evidence_is_never_ready_and_changes_nothing(host: SimulatedHost) -> None:
    host.evidence = BAD
    host.request("v2")
    host.settle(seconds=40)
    update = host.current()
    assert (update.status, update.step, update.ready_at) == (
        UpdateStatus.FAILED,
        Step.VERIFY,
        None,
    )
    assert update.fault is not None
    assert (update.fault.code, update.fault.detail) == (
        "attestation_refused",
        "snp_measurement: another",
    )
    assert host.serving_tag() == "v1"


def test_evidence_that_is_not_there_yet_is_waited_for(host: SimulatedHost) -> None:
    host.evidence = None
    host.request("v2")
    host.settle(seconds=20)
    assert host.current().step is Step.VERIFY
    assert host.serving_tag() == "v1"
    host.evidence = GOOD
    host.settle()
    assert host.serving_tag() == "v2"


def test_evidence_that_never_comes_fails_at_the_deadline(host: SimulatedHost) -> None:
    host.evidence = NOT_YET
    host.request("v2")
    host.settle(seconds=120)
    update = host.current()
    assert (update.status, update.step) == (UpdateStatus.FAILED, Step.VERIFY)
    assert update.fault is not None
    assert update.fault.code == "not_attested_in_time"
    assert host.serving_tag() == "v1"


def test_what_serves_is_judged_again_and_again(host: SimulatedHost) -> None:
    host.settle(seconds=10)
    before = judged(host)
    host.settle(seconds=int(5 * EVERY_S))
    assert 4 <= judged(host) - before <= 6
    assert (status(host), told(host)) == ("running", set())


def test_after_a_crash_of_the_agent_it_is_judged_at_once(host: SimulatedHost) -> None:
    before = judged(host)
    host.crash()
    host.boot_all()
    host.settle(seconds=4)
    assert judged(host) == before + 1


def test_lost_attestation_degrades_and_is_told(host: SimulatedHost) -> None:
    host.evidence = BAD
    host.settle(seconds=int(2 * EVERY_S))
    assert (status(host), told(host)) == ("degraded", {"attestation_lost"})
    assert host.serving_tag() == "v1"
    host.evidence = GOOD
    host.settle(seconds=int(2 * EVERY_S))
    assert (status(host), told(host)) == ("running", set())


STRICTER = Verdict(
    attested=True,
    stricter=(Check(code="snp_launch_tcb", passed=False, detail="snp 20, at least 24"),),
)


def test_what_serves_and_became_too_old_keeps_its_traffic_and_is_told(
    strict: SimulatedHost,
) -> None:
    strict.evidence = STRICTER
    strict.settle(seconds=int(3 * EVERY_S))
    assert (status(strict), told(strict)) == ("running", {"policy_stricter"})
    assert strict.serving_tag() == "v1"
    strict.crash()
    strict.settle(seconds=int(2 * EVERY_S))
    assert (strict.serving_tag(), told(strict)) == ("v1", {"policy_stricter"})
    strict.evidence = GOOD
    strict.settle(seconds=int(2 * EVERY_S))
    assert told(strict) == set()


def test_what_ends_is_launched_again_by_the_defaults_that_it_was_admitted_by(
    host: SimulatedHost,
) -> None:
    (before,) = host.read(lambda tx: tx.enclaves(NAME))
    old = msgspec.structs.replace(before, evidence_edition=FIRST_EVIDENCE_EDITION)
    host.transact(lambda tx: tx.put_enclave(old))
    host.evidence = STRICTER
    host.die(before.id)
    host.settle(seconds=60)
    (after,) = host.read(lambda tx: tx.enclaves(NAME))
    assert after.launch_uuid != before.launch_uuid
    assert after.evidence_edition == FIRST_EVIDENCE_EDITION
    assert host.serving_tag() == "v1"


def test_an_update_is_judged_by_today_s_defaults(host: SimulatedHost) -> None:
    host.request("v2")
    host.settle()
    editions = {row.evidence_edition for row in host.read(lambda tx: tx.enclaves(NAME))}
    assert editions == {EVIDENCE_EDITION}


def test_by_policy_it_leaves_the_traffic_and_comes_back(strict: SimulatedHost) -> None:
    strict.evidence = BAD
    strict.settle(seconds=int(2 * EVERY_S))
    assert strict.serving_tag() is None
    assert told(strict) == {"attestation_lost", "not_serving"}
    strict.evidence = GOOD
    strict.settle(seconds=int(2 * EVERY_S))
    assert strict.serving_tag() == "v1"
    assert told(strict) == set()


def test_a_guest_that_gives_no_evidence_any_more_has_lost_it_after_a_while(
    host: SimulatedHost,
) -> None:
    host.evidence = None
    host.settle(seconds=int(2 * EVERY_S))
    assert status(host) == "running"
    host.settle(seconds=int(2 * EVERY_S))
    assert (status(host), told(host)) == ("degraded", {"attestation_lost"})


def test_what_waits_for_accept_is_judged_again_and_fails_with_its_evidence(
    host: SimulatedHost,
) -> None:
    host.request("v2", staging=True)
    host.until(Step.ACCEPT)
    host.evidence = BAD
    host.settle(seconds=int(2 * EVERY_S))
    update = host.current()
    assert (update.status, update.step) == (UpdateStatus.FAILED, Step.ACCEPT)
    assert update.fault is not None
    assert update.fault.code == "attestation_lost"


def test_evidence_lost_in_the_soak_gives_the_traffic_back() -> None:
    host = host_with(soak_s=10 * EVERY_S)
    host.request("v2")
    host.until(Step.SOAK)
    assert host.serving_tag() == "v2"
    blue, green = sorted(host.vms, key=lambda key: host.vms[key].judged_at.boottime_s)
    host.vms[green].verdict = BAD
    host.settle(seconds=4)
    assert host.current().step is Step.REVERT
    host.settle(seconds=10)
    assert host.serving_tag() == "v1"
    assert set(host.vms) == {blue}
    host.close()


def test_a_good_verdict_on_another_launch_or_key_is_worth_nothing(host: SimulatedHost) -> None:
    (key,) = host.vms
    host.die(key)
    host.evidence = None
    host.settle(seconds=60)
    assert host.serving_tag() is None, "relaunched, healthy, and not judged"
    host.evidence = GOOD
    host.settle(seconds=60)
    assert host.serving_tag() == "v1"


def test_another_key_is_judged_at_once(host: SimulatedHost) -> None:
    host.settle(seconds=10)
    before = judged(host)
    (vm,) = host.vms.values()
    vm.key = "another"
    host.settle(seconds=4)
    assert judged(host) == before + 1
    assert (vm.judged_key, status(host)) == ("another", "running")


def test_another_key_without_good_evidence_is_degraded_and_by_policy_leaves(
    strict: SimulatedHost,
) -> None:
    """A proxy before the guest, say: the good verdict was on the guest's own key."""
    (vm,) = strict.vms.values()
    vm.key, strict.evidence = "another", BAD
    strict.settle(seconds=4)
    assert strict.serving_tag() is None
    assert (status(strict), told(strict)) == ("degraded", {"attestation_lost", "not_serving"})


def test_evidence_that_is_asked_for_anew_and_never_comes_is_lost_after_a_while(
    strict: SimulatedHost,
) -> None:
    """An answer of 503 is no verdict: it is asked again, and borne for so long and no longer."""
    strict.evidence = NOT_YET
    strict.crash()
    strict.boot_all()
    before = judged(strict)
    strict.settle(seconds=int(2 * EVERY_S))
    assert judged(strict) > before + 1, "asked again"
    assert (strict.serving_tag(), status(strict)) == ("v1", "running")
    strict.settle(seconds=int(2 * EVERY_S))
    assert strict.serving_tag() is None
    assert told(strict) == {"attestation_lost", "not_serving"}
    strict.evidence = GOOD
    strict.settle(seconds=10)
    assert (strict.serving_tag(), status(strict)) == ("v1", "running")


def bound(host: SimulatedHost) -> str | None:
    (row,) = host.read(lambda tx: tx.enclaves())
    return row.spki_sha256


def test_good_evidence_binds_the_key_durably(host: SimulatedHost) -> None:
    assert bound(host) == "key"
    host.crash()
    assert bound(host) == "key"


def test_evidence_that_is_refused_or_says_nothing_binds_no_key() -> None:
    for evidence in (BAD, NOT_YET, None):
        host = host_with()
        host.evidence = evidence
        (vm,) = host.vms.values()
        vm.key = "another"
        host.settle(seconds=20)
        assert bound(host) == "key"
        host.close()


def test_another_key_that_evidence_binds_is_bound_and_told(host: SimulatedHost) -> None:
    (vm,) = host.vms.values()
    vm.key = "another"
    host.settle(seconds=4)
    assert bound(host) == "another"
    events = [one for one in host.read(lambda tx: tx.events(0)) if one.kind == "key"]
    assert [(one.from_, one.to) for one in events] == [("key", "another")]
    assert status(host) == "running"


def test_another_key_that_no_evidence_binds_is_borne_as_long_as_a_failing_probe(
    strict: SimulatedHost,
) -> None:
    strict.evidence = NOT_YET
    (vm,) = strict.vms.values()
    vm.key = "another"
    before = judged(strict)
    strict.settle(seconds=4)
    assert judged(strict) > before, "asked at once"
    assert (strict.serving_tag(), status(strict)) == ("v1", "running")
    strict.settle(seconds=10)
    assert strict.serving_tag() is None
    assert (status(strict), told(strict)) == ("degraded", {"attestation_lost", "not_serving"})
    strict.evidence = GOOD
    strict.settle(seconds=10)
    assert (strict.serving_tag(), status(strict)) == ("v1", "running"), "bound while it is out"


def test_an_agent_that_begins_anew_takes_no_other_key_for_the_first(strict: SimulatedHost) -> None:
    strict.evidence = NOT_YET
    (vm,) = strict.vms.values()
    vm.key = "another"
    strict.crash()
    strict.boot_all()
    strict.settle(seconds=14)
    assert strict.serving_tag() is None
    assert bound(strict) == "key"


def test_a_restart_of_the_guests_server_makes_no_proof_forgotten(host: SimulatedHost) -> None:
    """It shows a key of the moment and 503, and then its own again."""
    (vm,) = host.vms.values()
    at = vm.judged_at
    vm.key, host.evidence = "of the moment", NOT_YET
    host.settle(seconds=4)
    vm.key = "key"
    host.settle(seconds=4)
    assert (vm.judged_at, vm.judged_key, vm.verdict) == (at, "key", GOOD)
    assert (status(host), told(host)) == ("running", set())


def test_a_key_that_is_swapped_in_the_dwell_is_bound_and_the_dwell_begins_with_it() -> None:
    host = host_with(dwell_s=20)
    host.request("v2")
    host.until(Step.VERIFY)
    host.settle(seconds=10)
    (green,) = [vm for key, vm in host.vms.items() if key == host.current().enclave]
    green.key = "another"
    host.settle(seconds=14)
    assert host.current().step is Step.VERIFY, "as long with this key"
    host.settle()
    assert host.serving_tag() == "v2"
    host.close()


def test_a_server_that_is_restarted_in_the_dwell_does_not_fail_the_update() -> None:
    host = host_with(dwell_s=20)
    host.request("v2")
    host.until(Step.VERIFY)
    host.settle(seconds=6)
    (green,) = [vm for key, vm in host.vms.items() if key == host.current().enclave]
    green.key, host.evidence = "of the moment", NOT_YET
    host.settle(seconds=4)
    green.key, host.evidence = "key", GOOD
    host.settle()
    assert host.serving_tag() == "v2"
    host.close()


MOVED = Verdict(
    attested=None,
    retry=True,
    checks=(Check(code="tls_key_changed", passed=False, detail="it showed another"),),
)


def test_evidence_that_comes_over_another_key_for_long_is_lost(strict: SimulatedHost) -> None:
    """Somebody between the agent and its guest who lets the probes through, say."""
    strict.evidence = MOVED
    (vm,) = strict.vms.values()
    while vm.doubted is None:
        strict.settle(seconds=2)
    assert status(strict) == "running"
    strict.settle(seconds=20)
    assert strict.serving_tag() is None
    strict.evidence = GOOD
    strict.settle(seconds=int(EVERY_S))
    assert (strict.serving_tag(), status(strict)) == ("v1", "running")


def test_another_firmware_of_the_host_has_all_of_them_judged_at_once(host: SimulatedHost) -> None:
    host.settle(seconds=10)
    before = judged(host)
    host.judge_again_at = host.clock.now()
    host.settle(seconds=4)
    assert judged(host) == before + 1, "once"
    host.settle(seconds=10)
    assert judged(host) == before + 1


def test_the_warm_old_one_is_judged_again_and_not_gone_back_to_without_evidence() -> None:
    host = host_with(soak_s=10 * EVERY_S)
    blue = next(iter(host.vms))
    host.request("v2")
    host.until(Step.SOAK)
    first = host.vms[blue].judged_at
    host.settle(seconds=int(2 * EVERY_S))
    assert host.vms[blue].judged_at != first
    host.vms[blue].verdict, host.vms[blue].judged_at = BAD, host.clock.now()
    host.sick_tags.add("v2")
    host.settle(seconds=10)
    assert host.current().step is Step.SOAK
    assert host.serving_tag() == "v2"
    host.vms[blue].verdict = GOOD
    host.settle(seconds=10)
    assert host.serving_tag() == "v1"
    host.close()


def test_a_switch_that_cannot_be_made_does_not_go_back_to_a_version_without_evidence(
    host: SimulatedHost,
) -> None:
    blue = next(iter(host.vms))
    host.request("v2")
    host.until(Step.VERIFY)
    host.broken.add(ActionKind.APPLY_ROUTE)
    host.vms[blue].verdict, host.vms[blue].judged_at = BAD, host.clock.now()
    host.until(Step.SWITCH)
    host.settle(seconds=20)
    assert host.current().step is Step.SWITCH
    host.broken.clear()
    host.settle()
    assert host.serving_tag() == "v2"


def test_a_plain_vm_is_judged_once_and_nothing_is_claimed() -> None:
    host = SimulatedHost()
    host.serve("v1")
    before = judged(host)
    host.settle(seconds=600)
    assert judged(host) == before
    assert status(host) == "running"
    assert [vm.verdict.attested for vm in host.vms.values()] == [None]
    host.close()
