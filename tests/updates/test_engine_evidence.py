"""Evidence is asked of the enclave's own endpoint, release and key, or there is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.attestation.port import NothingClaimedError, NotYetError, Verdict
from agent.attestation.unattested import Unattested
from agent.model.enclave import Enclave, Endpoint
from agent.model.ids import DeploymentName, EnclaveId, HostId
from agent.model.resources import GUEST_HTTPS_PORT
from agent.releases.port import ReleaseSourceError
from agent.store.port import Transaction
from agent.updates.engine.executor import Executor, UnknownEnclaveError
from agent.updates.planner.types import Action, ActionKind, Judged
from simulator.instant_host import InstantHost
from simulator.manual_clock import ManualClock
from simulator.memory_store import MemoryStore
from simulator.rows import deployment, enclave, release, revision

ROW = enclave()
HERE = Endpoint(address="127.0.0.9", port=GUEST_HTTPS_PORT)


class Asked:
    """An attestation that notes what it was asked."""

    def __init__(self) -> None:
        self.with_: tuple[Any, ...] = ()

    async def verify(self, *_: Any) -> Any:
        raise AssertionError("not asked for")

    async def evidence(self, *asked: Any) -> Any:
        self.with_ = asked
        return "evidence"


class Places:
    def endpoint(self, row: Any, revision: Any, port: int) -> Endpoint:
        return Endpoint(address="127.0.0.9", port=port)


class OneRelease:
    async def resolve(self, repo: str, tag: str, digest: str) -> Any:
        return release(repo=repo, tag=tag, digest=digest)


class AwayRelease:
    async def resolve(self, repo: str, tag: str, digest: str) -> Any:
        raise ReleaseSourceError("the source does not answer")


async def executor(
    attestation: Any,
    key: str | Callable[[], str] | None,
    clock: ManualClock | None = None,
    releases: Any = None,
    row: Enclave = ROW,
) -> Executor:
    clock = clock or ManualClock()
    store = MemoryStore(clock.now)

    def work(tx: Transaction) -> None:
        tx.put_deployment(deployment())
        tx.put_revision(revision(1))
        tx.put_enclave(row)

    await store.transact(work)
    parts: dict[str, Any] = {"releases": releases or OneRelease(), "enclaves": Places()}
    unused: dict[str, Any] = dict.fromkeys(
        ("traffic", "secrets", "preparation", "measured", "keeps_route", "restart_old")
    )
    return Executor(
        store=store,
        attestation=attestation,
        host_id=HostId("host"),
        spki_of=lambda _: key() if callable(key) else key,
        now=clock.now,
        **parts,
        **unused,
    )


async def test_it_is_asked_of_this_enclave_over_the_key_that_it_shows() -> None:
    asked = Asked()
    found = await (await executor(asked, "key")).evidence(ROW.id, b"nonce")
    assert found == "evidence"
    row, of, endpoint, key, nonce = asked.with_
    assert (row, endpoint, key, nonce) == (ROW, HERE, "key", b"nonce")
    assert (of.tag, DeploymentName(of.repo)) == ("v1.1.0", ROW.deployment)


async def test_it_is_held_against_the_bound_key_whatever_is_shown_in_this_moment() -> None:
    asked = Asked()
    bound = msgspec.structs.replace(ROW, spki_sha256="bound")
    made = await executor(asked, "of the moment", row=bound)
    await made.evidence(ROW.id, b"nonce")
    assert asked.with_[3] == "bound"


class Says:
    """An attestation with one answer after the other."""

    def __init__(self, *verdicts: Verdict) -> None:
        self.verdicts = list(verdicts)

    async def verify(self, *_: Any) -> Verdict:
        return self.verdicts.pop(0)


def good(firmware: str | None) -> Verdict:
    return Verdict(attested=True, firmware=firmware)


OTHER = EnclaveId("bbbbbbbb")
NOT_YET = Verdict(attested=None, retry=True)
ASK = Action(ActionKind.VERIFY, enclave=ROW.id, key=f"{ROW.launch_uuid}/key")


async def ask_all(made: Executor, clock: ManualClock, count: int) -> None:
    for _ in range(count):
        clock.advance(1)
        assert (await made.perform(ROW.deployment, ASK)).fault is None


async def test_a_change_of_the_firmware_is_noticed_in_what_one_enclave_says() -> None:
    clock = ManualClock()
    says = Says(good("1.55"), good("1.55"), good(None), good("1.55"), good("1.56"), good("1.56"))
    made = await executor(says, "key", clock)
    await ask_all(made, clock, 4)
    assert made.judge_again_at is None
    await ask_all(made, clock, 1)
    changed = clock.now()
    assert made.judge_again_at == changed
    await ask_all(made, clock, 1)
    assert made.judge_again_at == changed


async def test_evidence_that_does_not_come_is_timed_from_the_first_time_that_it_did_not() -> None:
    clock = ManualClock()
    made = await executor(Says(NOT_YET, NOT_YET, good(None), NOT_YET), "key", clock)
    await ask_all(made, clock, 1)
    first = clock.now()
    await ask_all(made, clock, 1)
    assert (made.verdicts[ROW.id].verdict, made.verdicts[ROW.id].at) == (NOT_YET, first)
    await ask_all(made, clock, 2)
    assert made.verdicts[ROW.id].verdict == good(None), "what was proven stands"


async def test_an_answer_that_is_no_verdict_on_another_key_leaves_what_was_proven() -> None:
    """As in a restart of the guest's server: a key of the moment, and 503."""
    clock = ManualClock()
    shown = ["key"]
    made = await executor(Says(good(None), NOT_YET), lambda: shown[0], clock)
    await ask_all(made, clock, 1)
    proven = made.verdicts[ROW.id]
    shown[0] = "of the moment"
    other = Action(ActionKind.VERIFY, enclave=ROW.id, key=f"{ROW.launch_uuid}/of the moment")
    clock.advance(1)
    assert (await made.perform(ROW.deployment, other)).fault is None
    assert made.verdicts[ROW.id] == proven


async def test_a_release_that_cannot_be_read_is_no_verdict_yet_and_says_why() -> None:
    clock = ManualClock()
    made = await executor(Says(), "key", clock, AwayRelease())
    await ask_all(made, clock, 1)
    verdict = made.verdicts[ROW.id].verdict
    assert (verdict.attested, verdict.retry) == (None, True)
    assert [check.code for check in verdict.checks] == ["release_source_unavailable"]


async def test_a_version_whose_evidence_was_refused_is_not_well_enough_to_go_back_to(
    tmp_path: Path,
) -> None:
    clock = ManualClock()
    host = InstantHost(MemoryStore(clock.now), clock, tmp_path)
    await host.runtime.start()
    try:
        await host.deploy(ROW.deployment, "v1")
        (facts,) = host.engine.snapshot.deployments[ROW.deployment].enclaves
        assert host.runtime.is_well(facts.row)
        refused = Judged("launch/key", Verdict(attested=False), clock.now())
        host.runtime.executor.verdicts[facts.row.id] = refused
        assert not host.runtime.is_well(facts.row)
    finally:
        await host.runtime.close()


async def test_a_guest_that_has_shown_no_key_has_no_evidence_yet() -> None:
    with pytest.raises(NotYetError):
        await (await executor(Asked(), None)).evidence(ROW.id, None)


async def test_an_enclave_that_is_gone_has_none() -> None:
    with pytest.raises(UnknownEnclaveError):
        await (await executor(Asked(), "key")).evidence(EnclaveId("bbbbbbbb"), None)


async def test_a_plain_vm_has_none() -> None:
    with pytest.raises(NothingClaimedError):
        await (await executor(Unattested(), "key")).evidence(ROW.id, None)


async def test_what_two_have_that_can_be_only_one_s_makes_the_other_disbelieved_at_once() -> None:
    clock = ManualClock()
    disputing = msgspec.structs.replace(good(None), attested=False, disputed=(OTHER,))
    made = await executor(Says(good(None), disputing), "key", clock)
    await ask_all(made, clock, 1)
    made.verdicts[OTHER] = made.verdicts[ROW.id]
    await ask_all(made, clock, 1)
    other = made.verdicts[OTHER]
    assert (other.verdict.attested, other.at) == (False, clock.now())
    assert [check.code for check in other.verdict.checks] == ["evidence_disputed"]
    assert ROW.id in other.verdict.checks[0].detail


async def test_who_is_disputed_and_was_never_judged_is_left_to_be() -> None:
    disputing = msgspec.structs.replace(good(None), attested=False, disputed=(OTHER,))
    made = await executor(Says(disputing), "key")
    await ask_all(made, ManualClock(), 1)
    assert OTHER not in made.verdicts
