"""A deployment's domain is changed, kept and taken away by an update, like its listeners."""

from __future__ import annotations

import msgspec
import pytest

from agent.model.ids import DeploymentName
from agent.model.lease import ClaimKind
from agent.model.reasons import DecidedStrategy
from agent.updates.errors import FieldError, RefusedError
from agent.updates.orders import Change, PlanQuestion
from simulator.instant_host import CALLER, InstantHost, Make, new
from simulator.simulated_host import release

NAME = DeploymentName("web")
OTHER = DeploymentName("other")


async def by_name(make: Make) -> InstantHost:
    """A host whose data plane tells deployments of one listener apart by their domain."""
    host = await make()
    host.supply = msgspec.structs.replace(host.supply, listeners_by_name=True)
    return host


async def claims(host: InstantHost) -> list[str]:
    rows = await host.runtime.parts.store.read(lambda tx: tx.claims())
    return sorted(one.key for one in rows if one.kind is ClaimKind.LISTEN)


async def test_a_domain_is_changed_kept_and_taken_away_with_its_claim(make: Make) -> None:
    host = await by_name(make)
    await host.finish(await host.engine.deploy(new(NAME, "v1", domain="a.example"), CALLER))
    listen = str(host.engine.snapshot.deployments[NAME].revision.listen)
    for change, domain in (
        (Change(domain="b.example"), "b.example"),
        (Change(tag="v2"), "b.example"),
        (Change(domain=None), None),
        (Change(domain="c.example"), "c.example"),
    ):
        update = await host.engine.update(NAME, change, CALLER)
        await host.finish(update)
        made = host.engine.snapshot.deployments[NAME].revision
        assert (made.domain, made.guest_domain) == (domain, domain or "localhost")
        assert host.traffic.orders[NAME].domain == domain
        assert await claims(host) == [f"{listen}/{domain}" if domain else listen]


async def test_a_domain_that_another_deployment_has_there_is_refused(make: Make) -> None:
    host = await by_name(make)
    await host.finish(await host.engine.deploy(new(NAME, "v1", domain="a.example"), CALLER))
    await host.finish(await host.engine.deploy(new(OTHER, "v1", domain="b.example"), CALLER))
    for domain in ("a.example", None):
        question = PlanQuestion(deployment=OTHER, domain=domain)
        assert (await host.engine.plan(question)).strategy is DecidedStrategy.REFUSE
        with pytest.raises(RefusedError) as refused:
            await host.engine.update(OTHER, Change(domain=domain), CALLER)
        assert str(refused.value.reasons[0].code) == "listen_in_use"
    assert await claims(host) == sorted(await claims(host))
    assert host.engine.snapshot.deployments[OTHER].revision.domain == "b.example"


async def test_a_failed_change_of_the_domain_leaves_the_old_one_and_its_claim(make: Make) -> None:
    host = await by_name(make)
    await host.finish(await host.engine.deploy(new(NAME, "v1", domain="a.example"), CALLER))
    before = await claims(host)
    host.releases.broken.add("v2")
    await host.finish(await host.engine.update(NAME, Change(tag="v2", domain="b.example"), CALLER))
    assert host.engine.snapshot.deployments[NAME].revision.domain == "a.example"
    assert await claims(host) == before
    assert host.traffic.orders[NAME].domain == "a.example"


async def test_what_is_missing_is_told_together_and_what_is_of_no_use_warned_of(
    make: Make,
) -> None:
    host = await make()
    needy = {"env_names": ("COLOUR", "SIZE"), "secret_names": ("API_KEY",)}
    host.releases.made["v1"] = msgspec.structs.replace(release("v1"), **needy)
    with pytest.raises(FieldError) as refused:
        await host.engine.deploy(new(NAME, "v1"), CALLER)
    assert refused.value.path == "variables.COLOUR"
    assert "variables COLOUR, SIZE and secrets API_KEY" in str(refused.value)
    given = {"COLOUR": "red", "SIZE": "1", "COLOR": "green"}
    made = await host.engine.deploy(
        new(NAME, "v1", variables=given, secrets={"API_KEY": "x"}), CALLER
    )
    (warning,) = [one for one in made.warnings if "COLOR:" in one]
    assert "did you mean COLOUR?" in warning
    await host.finish(made)
    kept = await host.engine.update(NAME, Change(), CALLER)
    assert not any("COLOR" in one for one in kept.warnings)  # it was told when it was given


async def test_a_plan_counts_what_would_be_taken_away(make: Make) -> None:
    host = await make()
    needy = {"env_names": ("COLOUR",), "secret_names": ("API_KEY",)}
    host.releases.made["v1"] = msgspec.structs.replace(release("v1"), **needy)
    wanted = new(NAME, "v1", variables={"COLOUR": "red"}, secrets={"API_KEY": "x"})
    await host.finish(await host.engine.deploy(wanted, CALLER))
    with pytest.raises(FieldError, match="COLOUR"):
        await host.engine.plan(PlanQuestion(deployment=NAME, unset_variables=("COLOUR",)))
    told = await host.engine.plan(PlanQuestion(deployment=NAME, unset_secrets=("API_KEY",)))
    assert [str(one.code) for one in told.reasons] == ["secrets_missing"]
    states = {one.name: one for one in await host.engine.secrets(NAME)}
    assert states["API_KEY"].how == "given to what runs"
    await host.engine.set_secrets(NAME, {"API_KEY": "y"}, CALLER)
    (state,) = await host.engine.secrets(NAME)
    assert (state.version, state.given, state.here) == (2, 1, True)
    await host.engine.set_secrets(NAME, {"API_KEY": None}, CALLER)
    (state,) = await host.engine.secrets(NAME)
    assert (state.version, state.how) == (None, "forgotten: what runs has it until a relaunch")
