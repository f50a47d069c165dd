"""Listeners that a deployment may have, those that it keeps, and what is told of them."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from agent.capacity.listen_rules import Door, ListenRules
from agent.model.addresses import HostAddresses
from agent.model.ids import DeploymentName
from agent.model.resources import Listen, Publish
from agent.traffic.port import Unheld
from agent.updates.engine import outlook_upkeep
from agent.updates.errors import FieldError
from agent.updates.orders import Change, PlanQuestion
from simulator.instant_host import InstantHost, Make, new
from simulator.simulated_host import CALLER

APP = DeploymentName("app")
AGENTS = Door(listen=Listen.parse("127.0.0.1:8470"), whose="the agent itself (listen.status)")
VIP = "198.51.100.3"


@pytest.fixture(autouse=True)
def _quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlook_upkeep, "_EVERY_S", 0.02)
    monkeypatch.setattr(outlook_upkeep, "_AT_MOST_EVERY_S", 0.0)
    monkeypatch.setattr(outlook_upkeep, "_AFTER_S", 0.0)


def has(host: InstantHost, *local: str, **rules: object) -> None:
    """The host's addresses are these from now on."""
    known = ListenRules(addresses=HostAddresses(local=local), doors=(AGENTS,), **rules)  # type: ignore[arg-type]
    host.supply = msgspec.structs.replace(host.supply, listen_rules=known)


async def problems(host: InstantHost, *expected: str) -> list[str]:
    """The details, once the codes of the problems are these."""
    publisher = host.runtime.publisher
    async with asyncio.timeout(5):
        while True:
            seen, shown = publisher.changed.count, publisher.snapshot.problems
            if sorted(one.code for one in shown) == sorted(expected):
                return [one.detail for one in shown]
            await publisher.changed.beyond(seen, 1)


@pytest.mark.parametrize(
    ("field", "listen", "publish"),
    [
        ("listen", "203.0.113.1:443", "127.0.0.1:8080"),
        ("publish[0]", "127.0.0.1:443", "224.0.0.1:8080"),
        ("publish[0]", "127.0.0.1:443", "0.0.0.0:8470"),
    ],
)
async def test_a_new_listener_that_may_not_be_had_is_refused_by_its_field(
    make: Make, field: str, listen: str, publish: str
) -> None:
    host = await make()
    has(host, "127.0.0.0/8")
    inside = 443
    request = new(
        APP,
        "v1",
        listen=Listen.parse(listen),
        publish=(Publish(listen=Listen.parse(publish), guest_port=inside),),
    )
    with pytest.raises(FieldError) as refused:
        await host.engine.deploy(request, CALLER)
    assert refused.value.path == field
    assert APP not in host.engine.snapshot.deployments
    await host.deploy(APP, "v1")
    changed = Change(listen=request.listen, publish=request.publish)
    with pytest.raises(FieldError) as refused:
        await host.engine.update(APP, changed, CALLER)
    assert refused.value.path == field
    await problems(host)


async def test_what_a_deployment_has_already_serves_on_and_is_told(make: Make) -> None:
    """After an upgrade of the agent, or when its address left the host."""
    host = await make()
    await host.engine.deploy(new(APP, "v1", listen=Listen.parse("127.0.0.1:8470")), CALLER)
    await host.until(APP, lambda facts: str(facts.status) == "running")
    has(host, "127.0.0.0/8")
    await host.restart()
    (detail,) = await problems(host, "listener_refused")
    assert "app" in detail
    assert "listen.status" in detail
    plan = await host.engine.plan(PlanQuestion(deployment=APP, tag="v2"))
    assert not plan.refused
    assert any("listen.status" in one for one in plan.warnings)
    update = await host.update(APP, "v2")
    assert str(update.status) == "completed"
    has(host, "192.0.2.1/32")
    moved = await host.update(APP, "v3", listen=Listen.parse("192.0.2.1:443"))
    assert str(moved.status) == "completed"
    await problems(host)
    has(host, "192.0.2.7/32")
    (detail,) = await problems(host, "listener_absent")
    assert "192.0.2.1:443" in detail
    again = await host.update(APP, "v4")
    assert str(again.status) == "completed"
    assert any("192.0.2.1" in one for one in again.warnings)


async def test_a_floating_address_is_a_problem_while_it_is_absent(make: Make) -> None:
    host = await make()
    has(host, "192.0.2.1/32", floating=(f"{VIP}/32",))
    request = new(APP, "v1", listen=Listen.parse(f"{VIP}:443"))
    update = await host.engine.deploy(request, CALLER)
    assert any("not on this host now" in one for one in update.warnings)
    assert str((await host.finish(update)).status) == "completed"
    for _ in range(2):
        (detail,) = await problems(host, "listener_absent")
        assert VIP in detail
        has(host, "192.0.2.1/32", f"{VIP}/32", floating=(f"{VIP}/32",))
        await problems(host)
        has(host, "192.0.2.1/32", floating=(f"{VIP}/32",))
    await problems(host, "listener_absent")
    await host.engine.stop(APP, CALLER)
    await problems(host)


async def test_a_port_that_a_program_took_names_program_and_deployment(make: Make) -> None:
    host = await make()
    await host.deploy(APP, "v1")
    listen, program = Listen.parse("127.0.0.1:8443"), "nginx (process 7), which listens on it"
    host.traffic.unheld = {listen: Unheld("Address already in use", program)}
    (detail,) = await problems(host, "listener_taken")
    assert detail.startswith("app: its listener 127.0.0.1:8443 was taken by nginx (process 7)")
    await host.engine.stop(APP, CALLER)
    while "left to it" not in detail:
        (detail,) = await problems(host, "listener_taken")
        await asyncio.sleep(0)
    host.traffic.unheld = {listen: Unheld("the process does not start")}
    await problems(host, "listener_not_held")
    host.traffic.unheld = {}
    await problems(host)
