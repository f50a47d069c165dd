"""Who is woken by what: news of one deployment's enclave are no other's."""

from __future__ import annotations

from agent.model.ids import DeploymentName
from agent.updates.engine.wakeups import Wakeups
from simulator.instant_host import CALLER, Make, new

ONE, TWO = DeploymentName("one"), DeploymentName("two")


def test_a_bell_is_one_deployments_and_a_stroke_is_for_all() -> None:
    wakeups = Wakeups()
    one, two = wakeups.of(ONE), wakeups.of(TWO)
    wakeups.of(ONE).notify()
    assert (one.count, two.count) == (1, 0)
    wakeups.notify()
    assert (one.count, two.count) == (2, 1)


def test_who_is_forgotten_is_woken_no_more_and_begins_anew() -> None:
    wakeups = Wakeups()
    old = wakeups.of(ONE)
    wakeups.forget(ONE)
    wakeups.forget(ONE)
    wakeups.notify()
    assert old.count == 0
    assert wakeups.of(ONE) is not old


async def test_an_update_of_one_gives_no_other_a_turn(make: Make) -> None:
    host = await make()
    for port, name in ((8443, ONE), (8444, TWO)):
        await host.finish(await host.engine.deploy(new(name, "v1", port), CALLER))
    before = host.runtime.wakeups.of(TWO).count
    await host.update(ONE, "v2")
    assert host.runtime.wakeups.of(TWO).count == before
