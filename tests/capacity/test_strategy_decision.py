"""The rules of the strategy, one by one."""

from __future__ import annotations

import datetime as dt

import msgspec
import pytest

from agent.capacity.accounts import Accounts
from agent.capacity.decision import decide
from agent.capacity.listen_rules import ListenRules
from agent.capacity.supply import Admission, Holding, HostSupply, Question, vm_memory_mib
from agent.model.addresses import HostAddresses
from agent.model.clock import Instant
from agent.model.ids import Bdf, DeploymentName, EnclaveId, LeaseId
from agent.model.lease import Claim, ClaimKind, Lease
from agent.model.reasons import DecidedStrategy, Reason, ReasonCode, Strategy
from agent.model.resources import Demand, Listen
from simulator.boards import cards

NOW = Instant(boot_id="b", boottime_s=100.0, wall=dt.datetime(2026, 1, 1, tzinfo=dt.UTC))
API = DeploymentName("api")
OTHER = DeploymentName("other")
ONE_VM = vm_memory_mib(512)
DEMAND = Demand(memory_mib=512, vcpus=1)
A1, A2, A3 = "10.215.0.2", "10.215.0.3", "10.215.0.4"
G1, G2 = Bdf("0000:01:00.0"), Bdf("0000:02:00.0")


def supply(**changes: object) -> HostSupply:
    values: dict[str, object] = {
        "memory_mib": 2 * ONE_VM + 100,
        "reserve_memory_mib": 100,
        "vcpus": 3,
        "reserve_vcpus": 1,
        "addresses": (A1, A2, A3),
        "disk_free_mib": 1000,
    }
    return HostSupply(**{**values, **changes})


def held(
    enclave: str, deployment: DeploymentName = API, address: str = A1, **changes: object
) -> Holding:
    values: dict[str, object] = {
        "enclave": EnclaveId(enclave),
        "deployment": deployment,
        "memory_mib": 512,
        "vcpus": 1,
        "address": address,
    }
    return Holding(**{**values, **changes})


def lease(
    *,
    deployment: DeploymentName | None = None,
    seconds: float = 60,
    strategy: Strategy = Strategy.FRESH,
    address: str | None = A2,
    boot_id: str = "b",
) -> Lease:
    made = Instant(boot_id=boot_id, boottime_s=50.0, wall=NOW.wall)
    return Lease(
        id=LeaseId("l1"),
        holder="local:0",
        deployment=deployment,
        strategy=strategy,
        demand=DEMAND,
        gpus=(),
        address=address,
        created_at=made,
        expires_at=made.plus(50 + seconds),
    )


def ask(
    question: Question,
    host: HostSupply,
    holdings: tuple[Holding, ...] = (),
    claims: tuple[Claim, ...] = (),
    leases: tuple[Lease, ...] = (),
    history: tuple[float, ...] = (),
) -> Admission:
    return decide(
        question,
        Accounts(host, holdings=holdings, claims=claims, leases=leases, now=NOW),
        history=history,
    )


def question(**changes: object) -> Question:
    values: dict[str, object] = {"demand": DEMAND, "deployment": API}
    return Question(**{**values, **changes})


def update(**changes: object) -> Question:
    return question(own=(EnclaveId("old"),), **changes)


def codes(admission: Admission) -> list[ReasonCode]:
    return [reason.code for reason in admission.decision.reasons]


def strategy(admission: Admission) -> DecidedStrategy:
    assert (admission.grant is None) == admission.decision.refused
    return admission.decision.strategy


def test_where_nothing_runs_and_it_fits_the_start_is_fresh_at_the_first_free_address() -> None:
    answer = ask(question(), supply(), (held("x", OTHER, A1),))
    assert strategy(answer) is DecidedStrategy.FRESH
    assert answer.grant is not None
    assert answer.grant.address == A2
    assert answer.decision.reasons == ()


def test_room_for_a_second_copy_means_blue_green_without_downtime() -> None:
    answer = ask(update(), supply(), (held("old"),), history=(9.0,))
    assert strategy(answer) is DecidedStrategy.BLUE_GREEN
    assert answer.grant is not None
    assert answer.grant.address == A2
    assert answer.grant.replaces == ()
    assert answer.decision.downtime_estimate_s is not None
    assert answer.decision.downtime_estimate_s.p90 == 0


def test_room_for_one_copy_only_means_stop_then_start_with_the_reason_and_the_old_address() -> (
    None
):
    host = supply(memory_mib=2 * ONE_VM + 99)
    answer = ask(update(), host, (held("old", address=A2),), history=(4.0, 2.0, 3.0))
    assert strategy(answer) is DecidedStrategy.STOP_THEN_START
    assert answer.grant is not None
    assert answer.grant.address == A2
    assert answer.grant.replaces == (EnclaveId("old"),)
    assert answer.decision.reasons == (
        Reason(
            code=ReasonCode.MEMORY_INSUFFICIENT,
            detail=f"{ONE_VM} MiB of memory needed, {ONE_VM - 1} free",
            needed=ONE_VM,
            available=ONE_VM - 1,
        ),
    )
    estimate = answer.decision.downtime_estimate_s
    assert estimate is not None
    assert (estimate.p50, estimate.p90, estimate.samples) == (3.0, 4.0, 3)


def test_an_estimate_without_history_is_a_default_that_says_so() -> None:
    answer = ask(update(), supply(vcpus=2), (held("old"),))
    estimate = answer.decision.downtime_estimate_s
    assert estimate is not None
    assert estimate.samples == 0
    assert estimate.p90 >= estimate.p50 > 0


def test_what_does_not_even_fit_in_place_of_the_old_is_refused_with_numbers() -> None:
    answer = ask(update(demand=Demand(memory_mib=512, vcpus=5)), supply(), (held("old"),))
    assert strategy(answer) is DecidedStrategy.REFUSE
    (reason,) = answer.decision.reasons
    assert (reason.code, reason.needed, reason.available) == (
        ReasonCode.VCPUS_INSUFFICIENT,
        5,
        2,
    )


@pytest.mark.parametrize(
    ("host", "asked", "code"),
    [
        ({"inventory_complete": False}, {}, ReasonCode.INVENTORY_INCOMPLETE),
        ({"draining": True}, {}, ReasonCode.HOST_DRAINING),
        ({}, {"running_update": True}, ReasonCode.UPDATE_IN_PROGRESS),
        ({}, {"demand": Demand(memory_mib=1, vcpus=1, gpus=1)}, ReasonCode.GPUS_INSUFFICIENT),
        ({}, {"demand": Demand(memory_mib=1, vcpus=1, tee_ids=1)}, ReasonCode.TEE_UNAVAILABLE),
        (
            {"tee_ids_elsewhere": 3},
            {"demand": Demand(memory_mib=1, vcpus=1, tee_ids=1)},
            ReasonCode.TEE_IDS_EXHAUSTED,
        ),
        (
            {"boards": cards((G1, G2))},
            {"demand": Demand(memory_mib=1, vcpus=1, gpus=2)},
            ReasonCode.GPU_GROUP_ILLEGAL,
        ),
        ({"addresses": ()}, {}, ReasonCode.ADDRESSES_EXHAUSTED),
        (
            {"disk_free_mib": 5},
            {"demand": Demand(memory_mib=1, vcpus=1, disk_mib=6)},
            ReasonCode.DISK_INSUFFICIENT,
        ),
        (
            {},
            {"obstacles": (Reason(code=ReasonCode.SECRETS_MISSING, detail="TOKEN"),)},
            ReasonCode.SECRETS_MISSING,
        ),
    ],
)
def test_each_shortage_and_closed_door_refuses_with_its_own_code(
    host: dict[str, object], asked: dict[str, object], code: ReasonCode
) -> None:
    answer = ask(question(**asked), supply(**host))
    assert strategy(answer) is DecidedStrategy.REFUSE
    assert codes(answer) == [code]


def test_insisting_on_blue_green_without_room_is_refused_and_never_downgraded() -> None:
    answer = ask(update(insisted=Strategy.BLUE_GREEN), supply(vcpus=2), (held("old"),))
    assert strategy(answer) is DecidedStrategy.REFUSE
    assert codes(answer) == [ReasonCode.STRATEGY_UNAVAILABLE, ReasonCode.VCPUS_INSUFFICIENT]


def test_insisting_on_stop_then_start_is_granted_even_where_a_second_copy_fits() -> None:
    answer = ask(update(insisted=Strategy.STOP_THEN_START), supply(), (held("old"),))
    assert strategy(answer) is DecidedStrategy.STOP_THEN_START
    assert codes(answer) == []


def test_insisting_on_fresh_beside_a_running_enclave_is_refused() -> None:
    answer = ask(update(insisted=Strategy.FRESH), supply(), (held("old"),))
    assert codes(answer) == [ReasonCode.STRATEGY_UNAVAILABLE]


def test_writable_volumes_are_never_attached_twice() -> None:
    demand = Demand(memory_mib=512, vcpus=1, writable_volumes=1)
    chosen = ask(update(demand=demand), supply(), (held("old"),))
    assert strategy(chosen) is DecidedStrategy.STOP_THEN_START
    assert codes(chosen) == [ReasonCode.VOLUME_EXCLUSIVE]
    insisted = ask(update(demand=demand, insisted=Strategy.BLUE_GREEN), supply(), (held("old"),))
    assert codes(insisted) == [ReasonCode.STRATEGY_UNAVAILABLE, ReasonCode.VOLUME_EXCLUSIVE]


@pytest.mark.parametrize("challenge", ["http", "tls"])
def test_a_proof_at_the_public_address_excludes_a_second_enclave(challenge: str) -> None:
    demand = Demand(memory_mib=512, vcpus=1, tls_challenge=challenge)
    chosen = ask(update(demand=demand), supply(), (held("old"),))
    assert strategy(chosen) is DecidedStrategy.STOP_THEN_START
    assert codes(chosen) == [ReasonCode.TLS_CHALLENGE_EXCLUSIVE]
    assert f"tls-challenge {challenge}" in chosen.decision.reasons[0].detail
    insisted = ask(update(demand=demand, insisted=Strategy.BLUE_GREEN), supply(), (held("old"),))
    assert codes(insisted) == [
        ReasonCode.STRATEGY_UNAVAILABLE,
        ReasonCode.TLS_CHALLENGE_EXCLUSIVE,
    ]
    staged = ask(update(demand=demand, staging=True), supply(), (held("old"),))
    assert codes(staged) == [
        ReasonCode.STAGING_NEEDS_BLUE_GREEN,
        ReasonCode.TLS_CHALLENGE_EXCLUSIVE,
    ]
    assert strategy(ask(question(demand=demand), supply())) is DecidedStrategy.FRESH


def test_staging_with_an_outage_must_be_asked_for_by_name() -> None:
    tight = supply(vcpus=2)
    refused = ask(update(staging=True), tight, (held("old"),))
    assert codes(refused) == [
        ReasonCode.STAGING_NEEDS_BLUE_GREEN,
        ReasonCode.VCPUS_INSUFFICIENT,
    ]
    granted = ask(update(staging=True, insisted=Strategy.STOP_THEN_START), tight, (held("old"),))
    assert strategy(granted) is DecidedStrategy.STOP_THEN_START
    assert strategy(ask(update(staging=True), supply(), (held("old"),))) is (
        DecidedStrategy.BLUE_GREEN
    )


def test_gpus_that_are_being_cleaned_are_waited_for_rather_than_made_an_outage() -> None:
    demand = Demand(memory_mib=512, vcpus=1, gpus=1)
    host = supply(boards=cards((G1,), cleaning=(G2,)), cleaning_s=33)
    holdings = (held("old", gpus=(G1,)),)
    answer = ask(update(demand=demand), host, holdings)
    assert codes(answer) == [ReasonCode.GPUS_DIRTY]
    assert answer.decision.retry_after_s == 33
    insisted = ask(update(demand=demand, insisted=Strategy.STOP_THEN_START), host, holdings)
    assert insisted.grant is not None
    assert insisted.grant.gpus == (G1,)


def claim(text: str, holder: str) -> Claim:
    return Claim(kind=ClaimKind.LISTEN, key=text, holder=holder)


@pytest.mark.parametrize(
    ("wanted", "taken", "free"),
    [
        ("127.0.0.1:443", "0.0.0.0:443", False),
        ("0.0.0.0:443", "127.0.0.1:443", False),
        ("127.0.0.1:443", "127.0.0.2:443", True),
        ("127.0.0.1:443", "0.0.0.0:444", True),
        ("[::1]:443", "0.0.0.0:443", True),
    ],
)
def test_a_listener_that_overlaps_anothers_is_refused(wanted: str, taken: str, free: bool) -> None:
    asked = question(listen_claims=(wanted,))
    claimed = ask(asked, supply(), claims=(claim(taken, "other"),))
    foreign = ask(asked, supply(foreign_listeners=(Listen.parse(taken),)))
    for answer in (claimed, foreign):
        assert codes(answer) == ([] if free else [ReasonCode.LISTEN_IN_USE])


@pytest.mark.parametrize(
    ("wanted", "taken", "free"),
    [
        ("127.0.0.1:443/a.example", "127.0.0.1:443/b.example", True),
        ("127.0.0.1:443/a.example", "127.0.0.1:443/a.example", False),
        ("127.0.0.1:443", "127.0.0.1:443/b.example", False),
        ("127.0.0.1:443/a.example", "127.0.0.1:443", False),
        ("127.0.0.1:443/a.example", "0.0.0.0:443/b.example", False),
        ("127.0.0.1:443/a.example", "127.0.0.1:444", True),
    ],
)
def test_a_listener_is_shared_by_domains_only_where_the_data_plane_routes_by_name(
    wanted: str, taken: str, free: bool
) -> None:
    asked, claims = question(listen_claims=(wanted,)), (claim(taken, "other"),)
    by_name = ask(asked, supply(listeners_by_name=True), claims=claims)
    assert codes(by_name) == ([] if free else [ReasonCode.LISTEN_IN_USE])
    apart = taken.endswith(":444")
    assert codes(ask(asked, supply(), claims=claims)) == (
        [] if apart else [ReasonCode.LISTEN_IN_USE]
    )


def test_a_domain_is_no_way_around_another_program_or_the_same_request() -> None:
    host = supply(listeners_by_name=True, foreign_listeners=(Listen.parse("127.0.0.1:443"),))
    assert codes(ask(question(listen_claims=("127.0.0.1:443/a.example",)), host)) == [
        ReasonCode.LISTEN_IN_USE
    ]
    twice = question(listen_claims=("127.0.0.1:443/a.example", "127.0.0.1:443"))
    assert codes(ask(twice, supply(listeners_by_name=True))) == [ReasonCode.LISTEN_IN_USE]


def test_a_deployments_own_listeners_and_the_sockets_behind_them_are_no_obstacle() -> None:
    own = "127.0.0.1:8443"
    host = supply(foreign_listeners=(Listen.parse(own), Listen(address=A1, port=8443)))
    answer = ask(update(listen_claims=(own,)), host, (held("old"),), claims=(claim(own, "api"),))
    assert strategy(answer) is DecidedStrategy.BLUE_GREEN


def test_a_program_that_took_the_port_of_a_stopped_deployment_is_named() -> None:
    """What runs is in force all the same, and may be updated."""
    own, program = "0.0.0.0:8443", "nginx (process 7)"
    host = supply(foreign_listeners=(Listen.parse(own),), programs={Listen.parse(own): program})
    claims = (claim(own, "api"),)
    stopped = ask(question(listen_claims=(own,)), host, claims=claims)
    assert codes(stopped) == [ReasonCode.LISTEN_IN_USE]
    assert program in stopped.decision.reasons[0].detail
    running = ask(update(listen_claims=(own,)), host, (held("old"),), claims=claims)
    assert running.decision.strategy is DecidedStrategy.BLUE_GREEN


def test_a_kept_listener_that_nothing_reaches_is_a_warning() -> None:
    rules = ListenRules(addresses=HostAddresses(local=("192.0.2.1/32",)))
    asked = update(listen_claims=("192.0.2.9:443/a.example", "192.0.2.1:8080"))
    answer = ask(asked, supply(listen_rules=rules), (held("old"),))
    assert answer.decision.strategy is DecidedStrategy.BLUE_GREEN
    (warning,) = answer.decision.warnings
    assert "192.0.2.9:443" in warning


def test_an_address_that_nobody_holds_but_somebody_listens_on_is_not_given_away() -> None:
    host = supply(foreign_listeners=(Listen(address=A1, port=20000),))
    fresh = ask(question(), host)
    assert fresh.grant is not None
    assert fresh.grant.address == A2
    kept = ask(update(insisted=Strategy.STOP_THEN_START), host, (held("old", address=A1),))
    assert kept.grant is not None
    assert kept.grant.address == A1


def test_two_listeners_of_one_request_may_not_overlap() -> None:
    answer = ask(
        question(
            listen_claims=(
                "0.0.0.0:80",
                "127.0.0.1:80",
            )
        ),
        supply(),
    )
    assert codes(answer) == [ReasonCode.LISTEN_IN_USE]


def test_a_lease_holds_its_amounts_and_address_until_it_expires_or_the_host_reboots() -> None:
    host, holdings = supply(), (held("x", OTHER, A1),)
    assert codes(ask(question(), host, holdings, leases=(lease(),))) == [
        ReasonCode.MEMORY_INSUFFICIENT,
        ReasonCode.VCPUS_INSUFFICIENT,
    ]
    for ended in (lease(seconds=0), lease(boot_id="before")):
        assert strategy(ask(question(), host, holdings, leases=(ended,))) is (
            DecidedStrategy.FRESH
        )


def test_a_redeemed_lease_gives_what_it_promised() -> None:
    promised = lease(deployment=API, address=A3)
    answer = ask(
        question(lease=promised.id), supply(), (held("x", OTHER, A1),), leases=(promised,)
    )
    assert answer.grant is not None
    assert answer.grant.address == A3


def test_a_redeemed_lease_gives_the_very_gpus_that_it_promised() -> None:
    demand = Demand(memory_mib=512, vcpus=1, gpus=1)
    promised = msgspec.structs.replace(lease(), demand=demand, gpus=(G2,))
    host = supply(boards=cards((G1, G2)))
    answer = ask(question(demand=demand, lease=promised.id), host, leases=(promised,))
    assert answer.decision.gpus == (G2,)


def test_a_lease_that_expired_or_is_anothers_is_refused() -> None:
    gone = ask(question(lease=LeaseId("l1")), supply(), leases=(lease(seconds=0),))
    others = ask(question(lease=LeaseId("l1")), supply(), leases=(lease(deployment=OTHER),))
    assert codes(gone) == codes(others) == [ReasonCode.LEASE_EXPIRED]
