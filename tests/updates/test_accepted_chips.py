"""Somebody says that another processor is this machine's: chained, and judged anew at once."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from agent.attestation.port import ChipNotAcceptedError, NothingClaimedError
from agent.attestation.unattested import Unattested
from agent.model.identity import KnownMachine
from agent.model.ids import DeploymentName
from agent.updates.errors import UnknownNameError
from simulator.instant_host import CALLER, Make
from simulator.rows import instant

WEB = DeploymentName("web")


def known(chip: str) -> KnownMachine:
    return KnownMachine(machine="m", source="PPID", chip=chip, learned_at=instant())


@dataclass
class Refusing(Unattested):
    """Whose newest evidence names this processor; None: it was not refused for that."""

    chip: str | None = None
    compared_anew: int = field(default=0)

    def chip_to_accept(self, name: DeploymentName) -> KnownMachine:
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
    await store.transact(lambda tx: tx.put_identity(known("aa")))
    change = await host.engine.accept_chip(WEB, CALLER)
    assert (change.source, change.old, change.new) == ("PPID", "aa", "bb")
    assert [one.chip for one in await store.read(lambda tx: tx.identities(KnownMachine))] == ["bb"]
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
