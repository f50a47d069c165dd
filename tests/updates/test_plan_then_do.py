"""A dry run says what then happens: the same strategy, or the same refusal in the same words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec
import pytest

from agent.capacity.boards import Board, Condition, Seat, as_recorded
from agent.capacity.supply import vm_memory_mib
from agent.inventory.preparation.records import mark_used
from agent.model.gpu import CcMode
from agent.model.ids import DeploymentName, EnclaveId
from agent.model.lease import Claim, ClaimKind
from agent.model.reasons import DecidedStrategy, Decision, ReasonCode, Strategy
from agent.model.resources import Demand
from agent.store.port import Transaction
from agent.updates.errors import FieldError, RefusedError
from agent.updates.orders import Change, PlanQuestion
from simulator.boards import bdf, cards, hgx_hopper
from simulator.instant_host import CALLER, InstantHost, Make, new
from simulator.simulated_host import release

NAME = DeploymentName("web")
BLUE_GREEN, STOP, FRESH = Strategy.BLUE_GREEN, Strategy.STOP_THEN_START, Strategy.FRESH
ONE_VM = vm_memory_mib(256)

Act = Callable[[InstantHost], Any]


class Case(NamedTuple):
    """A host on which v1 serves; what becomes of it; how v2 is asked for, and the answer."""

    answer: str
    become: Act = lambda _: None
    needs: Mapping[str, Any] = MappingProxyType({})  # of v2, beyond what v1 needs
    asked: Mapping[str, Any] = MappingProxyType({})
    gpus: int = 0
    debug: bool = False  # v2 is a debug release


def supply(**changes: Any) -> Act:
    def become(host: InstantHost) -> None:
        host.supply = msgspec.structs.replace(host.supply, **changes)

    return become


async def stop(host: InstantHost) -> None:
    await host.engine.stop(NAME, CALLER)
    await host.until(NAME, lambda facts: facts.enclaves == ())


async def drain(host: InstantHost) -> None:
    await host.engine.drain(CALLER)


async def begin_another(host: InstantHost) -> None:
    await host.engine.update(NAME, Change(tag="v1", staging=True), CALLER)


async def soil(host: InstantHost) -> None:
    host.preparer.works = False
    now, free = host.clock.now(), [bdf(1), bdf(2)]
    held = [gpu for one in host.engine.snapshot.deployments[NAME].enclaves for gpu in one.row.gpus]
    others = [gpu for gpu in free if gpu not in held]
    await host.runtime.parts.store.transact(
        lambda tx: mark_used(tx, others, EnclaveId("gone"), now)
    )


def unsign(host: InstantHost) -> None:
    host.releases.unsigned.add("v2")


def lose(host: InstantHost) -> None:
    host.releases.unknown.add("v2")


async def move(host: InstantHost) -> None:
    """v2 served once, and is another one now."""
    await host.update(NAME, "v2")
    await host.update(NAME, "v1")
    host.releases.made["v2"] = msgspec.structs.replace(host.releases.made["v2"], digest="f" * 64)


def bound_together() -> tuple[Board, ...]:
    seats = [Seat(bdf=bdf(n), mode=CcMode.ON, bound_with=frozenset({bdf(9)})) for n in (1, 2)]
    return tuple(msgspec.structs.replace(board, seats=tuple(seats)) for board in cards([bdf(1)]))


def never_confidential() -> Board:
    """Of a kind that no confidential guest can have."""
    seat = Seat(bdf=bdf(1), condition=Condition.UNFIT)
    (board,) = cards([bdf(1)])
    return msgspec.structs.replace(board, seats=(seat,), part="NVIDIA L40S")


def in_use_in_another_mode() -> Board:
    """One card of it is being used by the host, and none of the others is in the right mode."""
    board = hgx_hopper(CcMode.OFF)
    first = msgspec.structs.replace(board.seats[0], condition=Condition.BUSY)
    return msgspec.structs.replace(board, seats=(first, *board.seats[1:]))


def give_away_listener(tx: Transaction) -> None:
    tx.release_claims(NAME, ClaimKind.LISTEN)
    tx.claim(Claim(kind=ClaimKind.LISTEN, key="127.0.0.1:8443", holder="other"))


CASES = {
    "stopped": Case("fresh", stop),
    "stopped, insisted": Case("fresh", stop, asked={"strategy": BLUE_GREEN}),
    "room": Case("blue_green"),
    "room, staged": Case("blue_green", asked={"staging": True}),
    "room, stop insisted": Case("stop_then_start", asked={"strategy": STOP}),
    "full": Case("stop_then_start", supply(memory_mib=ONE_VM)),
    "full, staged by name": Case(
        "stop_then_start",
        supply(memory_mib=ONE_VM),
        asked={"strategy": STOP, "staging": True},
    ),
    "gpus": Case("blue_green", needs={"gpus": 1}, gpus=2),
    "full of gpus": Case("stop_then_start", needs={"gpus": 1}, gpus=1),
    "volumes": Case("stop_then_start", needs={"writable_volumes": 1}),
    "a challenge": Case("stop_then_start", needs={"tls_challenge": "http"}),
    "fresh insisted": Case("strategy_unavailable", asked={"strategy": FRESH}),
    "blue_green insisted": Case(
        "strategy_unavailable", supply(memory_mib=ONE_VM), asked={"strategy": BLUE_GREEN}
    ),
    "staged where there is no room": Case(
        "staging_needs_blue_green", supply(memory_mib=ONE_VM), asked={"staging": True}
    ),
    "survey": Case("inventory_incomplete", supply(inventory_complete=False)),
    "drain": Case("host_draining", drain),
    "another update": Case("update_in_progress", begin_another),
    "group": Case("gpu_group_illegal", needs={"gpus": 3}, gpus=3),
    "too few": Case(
        "gpus_insufficient", supply(boards=cards([bdf(1)], sizes=(1, 2))), {"gpus": 2}
    ),
    "dirty": Case("gpus_dirty", soil, {"gpus": 1}, gpus=2),
    "quarantined": Case(
        "gpus_quarantined", supply(boards=cards(quarantined=[bdf(1)])), {"gpus": 1}
    ),
    "no such mode": Case(
        "gpu_mode_unavailable",
        supply(boards=as_recorded(cards([bdf(1)]), (), {}, {bdf(1): frozenset({CcMode.ON})})),
        {"gpus": 1},
    ),
    "mode": Case(
        "mode_switch_needed",
        supply(boards=(in_use_in_another_mode(),)),
        {"gpus": 1},
    ),
    "iommu": Case("iommu_group_not_viable", supply(boards=bound_together()), {"gpus": 1}),
    "unfit": Case("gpus_not_confidential", supply(boards=(never_confidential(),)), {"gpus": 1}),
    "memory": Case("memory_insufficient", needs={"memory_mib": 100_000}),
    "vcpus": Case("vcpus_insufficient", needs={"vcpus": 1000}),
    "no tee": Case("tee_unavailable", supply(tee_ids_each=1)),
    "tee ids": Case("tee_ids_exhausted", supply(tee_ids_each=1, tee_ids_elsewhere=5)),
    "addresses": Case("addresses_exhausted", supply(addresses=())),
    "listener": Case(
        "listen_in_use",
        lambda host: host.runtime.parts.store.transact(give_away_listener),
    ),
    "disk": Case("disk_insufficient", needs={"disk_mib": 10**9}),
    "no domain": Case("domain_missing", supply(evidence_demanded=True)),
    "debug": Case(
        "debug_unattested", supply(evidence_demanded=True, default_domain="x.example"), debug=True
    ),
    "debug, unattested": Case("blue_green", debug=True),
    "unsigned": Case("signature_required", unsign),
    "unknown": Case("release_invalid", lose),
    "moved": Case("tag_moved", move),
    "moved, accepted": Case("blue_green", move, asked={"accept_moved_tag": True}),
}


async def serving(make: Make, case: Case) -> InstantHost:
    host = await make(gpus=case.gpus)
    gpus = 1 if case.gpus else 0
    for tag, needs in (("v1", {"gpus": gpus}), ("v2", {"gpus": gpus} | case.needs)):
        made = release(tag)
        demand = msgspec.structs.replace(made.demand, **needs)
        debug = case.debug and tag == "v2"
        host.releases.made[tag] = msgspec.structs.replace(made, demand=demand, debug=debug)
    await host.deploy(NAME, "v1")
    done = case.become(host)
    if done is not None:
        await done
    return host


async def do(host: InstantHost, **asked: Any) -> Decision:
    """Ask for it; the decision that was taken."""
    try:
        update = await host.engine.update(NAME, Change(**asked), CALLER)
    except RefusedError as refused:
        return refused.decision
    row = next(
        one.row
        for one in host.engine.snapshot.deployments[NAME].enclaves
        if one.row.id == update.enclave
    )
    strategy = DecidedStrategy(update.strategy)
    return Decision(strategy=strategy, gpus=row.gpus, reasons=update.reasons)


def answer(decision: Decision) -> str:
    return str(decision.reasons[0].code if decision.refused else decision.strategy)


def same(planned: Decision, done: Decision) -> bool:
    return (planned.strategy, planned.gpus, planned.reasons) == (
        done.strategy,
        done.gpus,
        done.reasons,
    )


@pytest.mark.parametrize("name", CASES)
async def test_what_is_planned_is_what_is_done(make: Make, name: str) -> None:
    case = CASES[name]
    host = await serving(make, case)
    question = PlanQuestion(deployment=NAME, tag="v2", **case.asked)
    before = await host.engine.updates(NAME)
    planned = await host.engine.plan(question)
    assert await host.engine.updates(NAME) == before
    assert answer(planned) == case.answer
    done = await do(host, tag="v2", **case.asked)
    assert same(planned, done), (planned, done)
    if done.refused:
        assert planned.retry_after_s == done.retry_after_s


def test_every_reason_of_an_admission_is_among_them() -> None:
    """A plan has no lease; a measurement is compared when a release is prepared.

    Few certificates for a name are told beside what is admitted (`test_certificates.py`).
    """
    brought = {case.answer for case in CASES.values()}
    brought |= {"secrets_missing", "volume_exclusive", "tls_challenge_exclusive"}
    brought |= {"unclean_stop"}  # a warning beside an admission: see test_clean_stops
    others = {"lease_expired", "measurement_mismatch", "ports_exhausted", "certificate_boots"}
    others.add("launch_format_unsupported")  # what the release itself is says so
    others.add(
        "launch_impossible"
    )  # what the host lacks: a plan says it, an update fails in prepare
    assert brought - set(DecidedStrategy) == set(map(str, ReasonCode)) - others


NEEDY = msgspec.structs.replace(release("v2"), secret_names=("KEY",), env_names=("COLOUR",))
GIVEN: dict[str, tuple[tuple[str, ...], tuple[str, ...], str]] = {
    "both": (("COLOUR",), ("KEY",), "blue_green"),
    "one more than is needed": (("COLOUR", "SIZE"), ("KEY", "TOKEN"), "blue_green"),
    "no secret": (("COLOUR",), (), "secrets_missing"),
    "another secret": (("COLOUR",), ("TOKEN",), "secrets_missing"),
    "no variable": ((), ("KEY",), "variables.COLOUR"),
}


@pytest.mark.parametrize("name", GIVEN)
async def test_the_names_of_what_would_be_given_decide_as_the_values_do(
    make: Make, name: str
) -> None:
    variables, secrets, expected = GIVEN[name]
    host = await make()
    await host.deploy(NAME, "v1")
    host.releases.made["v2"] = NEEDY
    given = {
        "variables": dict.fromkeys(variables, "some"),
        "secrets": dict.fromkeys(secrets, "value"),
    }
    question = PlanQuestion(deployment=NAME, tag="v2", variables=variables, secrets=secrets)
    if expected.startswith("variables."):
        for asked in (host.engine.plan(question), do(host, tag="v2", **given)):
            with pytest.raises(FieldError) as error:
                await asked
            assert error.value.path == expected
        return
    planned = await host.engine.plan(question)
    done = await do(host, tag="v2", **given)
    assert answer(planned) == expected
    assert same(planned, done), (planned, done)


async def test_what_the_deployment_has_need_not_be_named(make: Make) -> None:
    host = await make()
    host.releases.made["v2"] = NEEDY
    request = new(NAME, "v2", variables={"COLOUR": "blue"}, secrets={"KEY": "value"})
    await host.finish(await host.engine.deploy(request, CALLER))
    planned = await host.engine.plan(PlanQuestion(deployment=NAME))
    assert same(planned, await do(host))
    assert planned.strategy is DecidedStrategy.BLUE_GREEN


async def test_volumes_are_why_an_update_is_an_outage(make: Make) -> None:
    case = Case("strategy_unavailable", needs={"writable_volumes": 1})
    host = await serving(make, case)
    asked = {"tag": "v2", "strategy": BLUE_GREEN}
    planned = await host.engine.plan(PlanQuestion(deployment=NAME, **asked))
    assert [str(one.code) for one in planned.reasons] == [
        "strategy_unavailable",
        "volume_exclusive",
    ]
    assert same(planned, await do(host, **asked))


@pytest.mark.parametrize("memory_mib", [256, 100_000])
async def test_a_bare_demand_is_planned_as_a_new_deployment_is_admitted(
    make: Make, memory_mib: int
) -> None:
    host = await make()
    host.releases.made["v1"] = release("v1", memory_mib)
    demand = Demand(memory_mib=memory_mib, vcpus=1)
    planned = await host.engine.plan(PlanQuestion(demand=demand))
    assert answer(planned) == ("fresh" if memory_mib == 256 else "memory_insufficient")
    assert answer(planned) == await first(host)


async def first(host: InstantHost) -> str:
    try:
        return str((await host.engine.deploy(new(NAME, "v1"), CALLER)).strategy)
    except RefusedError as refused:
        return refused.code
