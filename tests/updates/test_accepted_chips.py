"""Somebody says that another processor is this machine's: chained, and judged anew at once."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import pytest

from agent.attestation.port import ChipNotAcceptedError, NothingClaimedError
from agent.attestation.unattested import Unattested
from agent.model.identity import KnownMachine, RefusedChip
from agent.model.ids import DeploymentName
from agent.store.port import Transaction
from agent.updates.engine.persist import persist
from agent.updates.errors import UnknownNameError
from agent.updates.planner.types import Write
from simulator.instant_host import CALLER, Make
from simulator.manual_clock import ManualClock
from simulator.memory_store import MemoryStore
from simulator.rows import deployment, instant

WEB = DeploymentName("web")


def refused(name: str, chip: str) -> RefusedChip:
    named = DeploymentName(name)
    return RefusedChip(machine="m", deployment=named, source="PPID", chip=chip, otherwise=())


def known(chip: str) -> KnownMachine:
    return KnownMachine(machine="m", source="PPID", chip=chip, learned_at=instant())


@dataclass
class Refusing(Unattested):
    """Whose newest evidence names this processor; None: it was not refused for that."""

    chip: str | None = None
    compared_anew: int = field(default=0)

    async def chip_to_accept(self, name: DeploymentName) -> KnownMachine:
        if self.chip is None:
            raise ChipNotAcceptedError(f"no evidence of {name} was refused for its processor")
        return known(self.chip)

    def compare_anew(self) -> None:
        self.compared_anew += 1


async def test_it_is_recorded_with_who_said_so_and_everything_is_judged_anew(make: Make) -> None:
    gate = Refusing(chip="bb")
    host = await make(attestation=gate)
    await host.deploy(WEB, "v1")
    store = host.runtime.parts.store
    other = refused("other", "cc")
    instance = msgspec.structs.replace(known("aa"), source="platform instance id")
    rows = (instance, refused("web", "bb"), refused("api", "bb"), other)
    await store.transact(lambda tx: [tx.put_identity(row) for row in rows])
    change = await host.engine.accept_chip(WEB, CALLER)
    assert (change.source, change.old, change.new) == ("PPID", "aa", "bb")
    assert [one.chip for one in await store.read(lambda tx: tx.identities(KnownMachine))] == ["bb"]
    assert await store.read(lambda tx: tx.identities(RefusedChip)) == [other]
    (event,) = [one for one in await host.engine.events(0) if one.kind == "chip"]
    assert (event.deployment, event.from_, event.to) == (WEB, "aa", "bb")
    assert event.actor == CALLER.name
    assert gate.compared_anew == 1
    assert host.runtime.executor.judge_again_at == host.clock.now()


async def test_what_was_not_refused_for_its_processor_changes_nothing(make: Make) -> None:
    host = await make(attestation=Refusing())
    await host.deploy(WEB, "v1")
    with pytest.raises(ChipNotAcceptedError):
        await host.engine.accept_chip(WEB, CALLER)
    store = host.runtime.parts.store
    assert await store.read(lambda tx: tx.identities(KnownMachine)) == []
    assert host.runtime.executor.judge_again_at is None


async def test_nobody_s_and_nothing_s_processor_is_no_machine_s(make: Make) -> None:
    host = await make()
    with pytest.raises(UnknownNameError):
        await host.engine.accept_chip(WEB, CALLER)
    await host.deploy(WEB, "v1")
    with pytest.raises(NothingClaimedError):
        await host.engine.accept_chip(WEB, CALLER)


async def test_what_was_refused_is_forgotten_with_its_deployment() -> None:
    store, kept = MemoryStore(ManualClock().now), refused("api", "bb")

    def work(tx: Transaction) -> None:
        tx.put_deployment(deployment())
        for row in (refused("web", "bb"), kept):
            tx.put_identity(row)
        persist(tx, WEB, Write(delete_deployment=True), lambda _: "", instant())

    await store.transact(work)
    assert await store.read(lambda tx: tx.identities(RefusedChip)) == [kept]
