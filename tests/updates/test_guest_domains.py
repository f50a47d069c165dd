"""What a guest is told of its own name: always something, stable, and never a claim."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from agent.model.ids import DeploymentName
from agent.model.reasons import DecidedStrategy, ReasonCode
from agent.model.revision import Revision
from agent.store.port import Transaction
from agent.updates.errors import FieldError, RefusedError
from agent.updates.orders import Change, PlanQuestion
from simulator.instant_host import CALLER, InstantHost, Make, new
from simulator.rows import release

NAME = DeploymentName("web")


async def host_of(make: Make, **supply: Any) -> InstantHost:
    host = await make()
    host.supply = msgspec.structs.replace(host.supply, **supply)
    return host


async def deployed(host: InstantHost, **options: Any) -> Revision:
    await host.finish(await host.engine.deploy(new(NAME, "v1", **options), CALLER))
    return revision(host)


def revision(host: InstantHost) -> Revision:
    found = host.engine.snapshot.deployments[NAME].revision
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("default", "options", "name"),
    [
        ("enclaves.example", {}, "web.enclaves.example"),
        ("enclaves.example", {"domain": "api.example"}, "api.example"),
        ("enclaves.example", {"variables": {"DOMAIN": "own.example"}}, "own.example"),
        (None, {"domain": "api.example"}, "api.example"),
        (None, {}, "localhost"),
    ],
)
async def test_its_domain_else_one_by_default_else_localhost(
    make: Make, default: str | None, options: dict[str, Any], name: str
) -> None:
    host = await host_of(make, default_domain=default)
    found = await deployed(host, **options)
    assert found.guest_domain == name


async def test_a_name_by_default_claims_no_listener(make: Make) -> None:
    host = await host_of(make, default_domain="enclaves.example", listeners_by_name=True)
    found = await deployed(host)
    assert found.domain is None
    assert found.listen_claims == ("127.0.0.1:8443",)
    assert host.traffic.orders[NAME].domain is None


async def test_a_name_by_default_stays_whatever_the_default_becomes(make: Make) -> None:
    host = await host_of(make, default_domain="enclaves.example")
    await deployed(host)
    host.supply = msgspec.structs.replace(host.supply, default_domain="other.example")
    await host.update(NAME, "v2")
    assert revision(host).guest_domain == "web.enclaves.example"
    host.supply = msgspec.structs.replace(host.supply, default_domain=None)
    await host.finish(await host.engine.rollback(NAME, None, CALLER))
    assert revision(host).guest_domain == "web.enclaves.example"


async def test_localhost_is_no_name_that_stays(make: Make) -> None:
    host = await host_of(make)
    assert (await deployed(host)).guest_domain == "localhost"
    host.supply = msgspec.structs.replace(host.supply, default_domain="enclaves.example")
    await host.update(NAME, "v2")
    assert revision(host).guest_domain == "web.enclaves.example"


async def test_localhost_is_told_where_it_is_admitted(make: Make) -> None:
    host = await host_of(make)
    update = await host.engine.deploy(new(NAME, "v1"), CALLER)
    assert ["localhost" in one for one in update.warnings] == [True]
    await host.finish(update)
    planned = await host.engine.plan(PlanQuestion(deployment=NAME, tag="v2"))
    assert planned.warnings == update.warnings
    host.supply = msgspec.structs.replace(host.supply, default_domain="enclaves.example")
    assert (await host.engine.plan(PlanQuestion(deployment=NAME, tag="v2"))).warnings == ()


async def test_where_evidence_is_demanded_localhost_is_refused_with_the_remedy(
    make: Make,
) -> None:
    host = await host_of(make, evidence_demanded=True)
    for options in ({}, {"domain": "localhost"}, {"variables": {"DOMAIN": "localhost"}}):
        with pytest.raises(RefusedError, match="dummy report") as refused:
            await host.engine.deploy(new(NAME, "v1", **options), CALLER)
        assert refused.value.code == ReasonCode.DOMAIN_MISSING
        assert "releases.default_domain" in str(refused.value)
    update = await host.engine.deploy(new(NAME, "v1", domain="api.example"), CALLER)
    assert update.warnings == ()


async def test_a_rollback_to_localhost_is_refused_too(make: Make) -> None:
    host = await host_of(make)
    await deployed(host)
    host.supply = msgspec.structs.replace(host.supply, default_domain="enclaves.example")
    await host.update(NAME, "v2")
    host.supply = msgspec.structs.replace(host.supply, default_domain=None, evidence_demanded=True)
    with pytest.raises(RefusedError) as refused:
        await host.engine.rollback(NAME, 1, CALLER)
    assert refused.value.code == ReasonCode.DOMAIN_MISSING


async def test_a_revision_of_before_is_named_when_it_is_admitted_again(make: Make) -> None:
    host = await host_of(make, default_domain="enclaves.example", evidence_demanded=True)
    await deployed(host)
    await host.update(NAME, "v2")

    def forget(tx: Transaction) -> None:
        first = tx.revision(NAME, 1)
        assert first is not None
        tx.put_revision(msgspec.structs.replace(first, guest_domain=None))

    await host.runtime.parts.store.transact(forget)
    update = await host.engine.rollback(NAME, 1, CALLER)
    assert (await host.finish(update)).revision == 1
    assert revision(host).guest_domain == "web.enclaves.example"


async def test_a_config_that_wants_a_dummy_report_is_refused_where_evidence_is_demanded(
    make: Make,
) -> None:
    host = await host_of(make, default_domain="enclaves.example", evidence_demanded=True)
    host.releases.made["v1"] = release(tag="v1", dummy_attestation=True)
    with pytest.raises(RefusedError, match=r"shim\.dummy-attestation"):
        await host.engine.deploy(new(NAME, "v1"), CALLER)
    host.supply = msgspec.structs.replace(host.supply, evidence_demanded=False)
    assert (await host.engine.deploy(new(NAME, "v1"), CALLER)).tag == "v1"


@pytest.mark.parametrize("said", ["", "Web.Example", "a b", "other.example"])
async def test_a_variable_that_is_no_name_or_another_than_the_domain_is_refused(
    make: Make, said: str
) -> None:
    host = await host_of(make)
    with pytest.raises(FieldError) as refused:
        await host.engine.deploy(
            new(NAME, "v1", domain="api.example", variables={"DOMAIN": said}), CALLER
        )
    assert refused.value.path == "variables.DOMAIN"


async def test_a_config_may_ask_for_the_name_without_anybody_giving_it(make: Make) -> None:
    host = await host_of(make)
    for tag in ("v1", "v2"):
        host.releases.made[tag] = release(tag=tag, env_names=("DOMAIN",))
    assert (await deployed(host)).variables == {}
    await host.engine.update(NAME, Change(tag="v2", variables={"DOMAIN": "own.example"}), CALLER)
    asked = PlanQuestion(deployment=NAME, tag="v2", variables=("DOMAIN",))
    assert (await host.engine.plan(asked)).strategy is DecidedStrategy.REFUSE  # it is under way
