"""The ledger and the decision against brute force, and by what must never happen."""

from __future__ import annotations

import datetime as dt
from itertools import combinations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.capacity.accounts import Accounts
from agent.capacity.boards import Condition
from agent.capacity.decision import decide
from agent.capacity.ledger import room, total
from agent.capacity.supply import Admission, Grant, Holding, HostSupply, Question, vm_memory_mib
from agent.model.clock import Instant
from agent.model.ids import Bdf, DeploymentName, EnclaveId, LeaseId
from agent.model.lease import Lease
from agent.model.reasons import DecidedStrategy, Strategy
from agent.model.resources import Demand
from simulator.boards import bdf, cards

NOW = Instant(boot_id="b", boottime_s=100.0, wall=dt.datetime(2026, 1, 1, tzinfo=dt.UTC))
ADDRESSES = tuple(f"10.215.0.{n}" for n in range(2, 6))
GPUS = tuple(Bdf(f"0000:0{n}:00.0") for n in range(1, 5))
DEPLOYMENTS = [DeploymentName(name) for name in ("a", "b", "c")]

demands = st.builds(
    Demand,
    memory_mib=st.sampled_from([256, 512, 1024, 2048]),
    vcpus=st.integers(1, 3),
    gpus=st.sampled_from([0, 0, 1, 2]),
    tee_ids=st.integers(0, 1),
    disk_mib=st.sampled_from([0, 100]),
    writable_volumes=st.sampled_from([0, 0, 0, 1]),
)


@st.composite
def supplies(draw: st.DrawFn, *, cleaning: bool = True) -> HostSupply:
    gpus = draw(st.integers(0, 4))
    dirty = draw(st.integers(0, gpus)) if cleaning else 0
    return HostSupply(
        memory_mib=draw(st.integers(0, 8000)),
        reserve_memory_mib=draw(st.sampled_from([0, 300])),
        vcpus=draw(st.integers(0, 8)),
        reserve_vcpus=draw(st.integers(0, 1)),
        addresses=ADDRESSES[: draw(st.integers(0, 4))],
        disk_free_mib=draw(st.integers(0, 400)),
        tee_ids=draw(st.integers(0, 3)),
        tee_ids_elsewhere=draw(st.integers(0, 2)),
        boards=cards(GPUS[dirty:gpus], cleaning=GPUS[:dirty], sizes=(1, 2)),
    )


class Host:
    """The engine's part: rows that come and go as its updates do."""

    def __init__(self, supply: HostSupply, named_after: Host | None = None) -> None:
        self.supply = supply
        self.rows: dict[EnclaveId, Holding] = {}
        self._count: int = named_after._count if named_after else 0

    def own(self, name: DeploymentName) -> tuple[EnclaveId, ...]:
        return tuple(e for e, row in self.rows.items() if row.deployment == name)

    def ask(self, question: Question, leases: tuple[Lease, ...] = ()) -> Admission:
        return decide(
            question,
            Accounts(self.supply, holdings=list(self.rows.values()), leases=leases, now=NOW),
        )

    def put(self, name: DeploymentName, demand: Demand, grant: Grant) -> EnclaveId:
        self._count += 1
        row = Holding(
            enclave=EnclaveId(f"e{self._count}"),
            deployment=name,
            memory_mib=demand.memory_mib,
            vcpus=demand.vcpus,
            address=grant.address,
            gpus=grant.gpus,
            tee_ids=demand.tee_ids,
            disk_mib=demand.disk_mib,
            replaces=grant.replaces,
        )
        self.rows[row.enclave] = row
        return row.enclave

    def sets_that_may_run(self) -> list[list[Holding]]:
        """Every largest set of rows in which nobody runs beside whom he replaces."""
        rows = list(self.rows.values())
        pairs = {(r.enclave, old) for r in rows for old in r.replaces}
        possible = [
            set(chosen)
            for size in range(len(rows) + 1)
            for chosen in combinations([r.enclave for r in rows], size)
            if not any(new in chosen and old in chosen for new, old in pairs)
        ]
        largest = [one for one in possible if not any(one < other for other in possible)]
        return [[row for row in rows if row.enclave in one] for one in largest]

    def check(self) -> None:
        for running in self.sets_that_may_run():
            supply = self.supply
            memory = sum(vm_memory_mib(row.memory_mib) for row in running)
            assert memory <= max(0, supply.memory_mib - supply.reserve_memory_mib)
            assert sum(r.vcpus for r in running) <= max(0, supply.vcpus - supply.reserve_vcpus)
            assert sum(row.tee_ids for row in running) <= supply.tee_ids
            assert sum(row.disk_mib for row in running) <= supply.disk_free_mib
            for things in (
                [row.address for row in running],
                [gpu for row in running for gpu in row.gpus],
            ):
                assert len(things) == len(set(things))


steps = st.lists(
    st.tuples(
        st.sampled_from(["update", "update", "update", "old goes", "new goes", "all go"]),
        st.sampled_from(DEPLOYMENTS),
        demands,
        st.sampled_from([None, None, Strategy.BLUE_GREEN, Strategy.STOP_THEN_START]),
    ),
    max_size=14,
)


@settings(max_examples=300, deadline=None)
@given(supplies(), steps)
def test_whatever_is_admitted_and_however_it_ends_nothing_is_given_away_twice(
    supply: HostSupply,
    story: list[tuple[str, DeploymentName, Demand, Strategy | None]],
) -> None:
    host = Host(supply)
    under_way: dict[DeploymentName, tuple[tuple[EnclaveId, ...], EnclaveId]] = {}
    for what, name, demand, insisted in story:
        if what == "update":
            question = Question(
                demand=demand,
                deployment=name,
                own=host.own(name),
                insisted=insisted,
                running_update=name in under_way,
            )
            answer = host.ask(question)
            if answer.grant is not None:
                old = host.own(name)
                under_way[name] = (old, host.put(name, demand, answer.grant))
        elif name in under_way:
            old, new = under_way.pop(name)
            gone = {"old goes": old, "new goes": (new,), "all go": (*old, new)}[what]
            for enclave in gone:
                host.rows.pop(enclave, None)
        host.check()


@settings(max_examples=300, deadline=None)
@given(supplies(), st.lists(demands, max_size=4), demands, st.booleans())
def test_the_decision_is_what_trying_every_way_would_find(
    supply: HostSupply, others: list[Demand], wanted: Demand, runs: bool
) -> None:
    host = Host(supply)
    names = [DeploymentName(f"other{n}") for n in range(len(others))]
    if runs and others:
        names[0] = DEPLOYMENTS[0]
    for name, demand in zip(names, others, strict=True):
        grant = host.ask(Question(demand=demand, deployment=name)).grant
        if grant is not None:
            host.put(name, demand, grant)
    own = host.own(DEPLOYMENTS[0])
    answer = host.ask(Question(demand=wanted, deployment=DEPLOYMENTS[0], own=own))
    assert answer.decision.strategy is _brute_force(host, wanted, own)


def _brute_force(host: Host, wanted: Demand, own: tuple[EnclaveId, ...]) -> DecidedStrategy:
    """By putting the new enclave down with every choice of things and checking the outcome."""
    supply = host.supply
    ready, cleaned = supply.gpus(Condition.READY), supply.gpus(*Condition)
    if wanted.gpus > len(cleaned) or (wanted.tee_ids and not supply.tee_ids):
        return DecidedStrategy.REFUSE
    beside = _fits(host, wanted, ready, ())
    if not own:
        return DecidedStrategy.FRESH if beside else DecidedStrategy.REFUSE
    if beside and not wanted.writable_volumes:
        return DecidedStrategy.BLUE_GREEN
    if not wanted.writable_volumes and _fits(host, wanted, cleaned, ()):
        return DecidedStrategy.REFUSE
    if _fits(host, wanted, ready, own):
        return DecidedStrategy.STOP_THEN_START
    return DecidedStrategy.REFUSE


def _fits(
    host: Host, wanted: Demand, gpus: tuple[Bdf, ...], replaces: tuple[EnclaveId, ...]
) -> bool:
    for address in host.supply.addresses:
        for chosen in combinations(gpus, wanted.gpus):
            trial = Host(host.supply, named_after=host)
            trial.rows = {e: row for e, row in host.rows.items() if e not in replaces}
            trial.put(DEPLOYMENTS[0], wanted, Grant(address=address, gpus=chosen))
            try:
                trial.check()
            except AssertionError:
                continue
            return True
    return False


@settings(max_examples=300, deadline=None)
@given(
    supplies(cleaning=False),
    demands,
    demands,
    st.booleans(),
    st.sampled_from([None, Strategy.BLUE_GREEN, Strategy.STOP_THEN_START]),
    st.sampled_from(["memory_mib", "vcpus", "disk_free_mib", "tee_ids", "addresses", "gpus"]),
)
def test_more_supply_never_turns_an_admission_into_a_refusal(
    supply: HostSupply,
    running: Demand,
    wanted: Demand,
    runs: bool,
    insisted: Strategy | None,
    dimension: str,
) -> None:
    """True while no GPU is being cleaned: waiting for one is chosen where it would help."""
    host = Host(supply)
    grant = host.ask(Question(demand=running, deployment=DEPLOYMENTS[0])).grant
    if runs and grant is not None:
        host.put(DEPLOYMENTS[0], running, grant)
    own = host.own(DEPLOYMENTS[0])
    question = Question(demand=wanted, deployment=DEPLOYMENTS[0], own=own, insisted=insisted)
    before = host.ask(question)
    had = getattr(supply, dimension)
    more = {"addresses": (*had, "10.215.0.99")} if dimension == "addresses" else {}
    if dimension == "gpus":
        ready = supply.gpus(Condition.READY)
        more = {"boards": cards((*ready, bdf(0x99)), sizes=(1, 2))}
    host.supply = msgspec.structs.replace(supply, **(more or {dimension: had + 1}))
    after = host.ask(question)
    if not before.decision.refused:
        order = [
            DecidedStrategy.STOP_THEN_START,
            DecidedStrategy.BLUE_GREEN,
            DecidedStrategy.FRESH,
        ]
        assert after.decision.strategy in order[order.index(before.decision.strategy) :]


@given(supplies(), demands, demands)
def test_a_decision_is_the_same_every_time(
    supply: HostSupply, running: Demand, wanted: Demand
) -> None:
    host = Host(supply)
    question = Question(demand=running, deployment=DEPLOYMENTS[0])
    assert host.ask(question) == host.ask(question)
    grant = host.ask(question).grant
    if grant is not None:
        host.put(DEPLOYMENTS[0], running, grant)
    update = Question(demand=wanted, deployment=DEPLOYMENTS[0], own=host.own(DEPLOYMENTS[0]))
    assert host.ask(update) == host.ask(update)


@settings(deadline=None)
@given(supplies(), demands, demands)
def test_what_was_leased_is_there_when_the_lease_is_redeemed(
    supply: HostSupply, wanted: Demand, others: Demand
) -> None:
    host = Host(supply)
    promised = host.ask(Question(demand=wanted, deployment=DEPLOYMENTS[0]))
    if promised.grant is None:
        return
    lease = Lease(
        id=LeaseId("l"),
        holder="local:0",
        deployment=DEPLOYMENTS[0],
        strategy=Strategy.FRESH,
        demand=wanted,
        gpus=promised.grant.gpus,
        address=promised.grant.address,
        created_at=NOW,
        expires_at=NOW.plus(60),
    )
    for name in DEPLOYMENTS[1:]:
        grant = host.ask(Question(demand=others, deployment=name), (lease,)).grant
        if grant is not None:
            host.put(name, others, grant)
    redeemed = host.ask(
        Question(demand=wanted, deployment=DEPLOYMENTS[0], lease=lease.id), (lease,)
    )
    assert redeemed.grant == promised.grant


@settings(deadline=None)
@given(
    st.integers(0, 4000),
    st.lists(st.tuples(demands, st.integers(0, 100)), max_size=8),
)
def test_guests_that_use_all_they_were_promised_leave_the_reserve(
    others_use_mib: int, story: list[tuple[Demand, int]]
) -> None:
    """MemAvailable is what a kernel would say: total less what others and guests have touched."""
    host = Host(
        HostSupply(
            memory_mib=8000,
            reserve_memory_mib=500,
            vcpus=100,
            addresses=tuple(f"10.215.1.{n}" for n in range(1, 20)),
            disk_free_mib=10000,
            tee_ids=100,
            boards=cards(map(bdf, range(1, 40)), sizes=(1, 2)),
        )
    )
    touched: dict[EnclaveId, int] = {}
    for number, (demand, percent) in enumerate(story):
        host.supply = msgspec.structs.replace(
            host.supply,
            mem_available_mib=max(0, 8000 - others_use_mib - sum(touched.values())),
            resident_mib=dict(touched),
        )
        name = DeploymentName(f"d{number}")
        grant = host.ask(Question(demand=demand, deployment=name)).grant
        if grant is not None:
            enclave = host.put(name, demand, grant)
            touched[enclave] = vm_memory_mib(demand.memory_mib) * percent // 100
    promised = sum(vm_memory_mib(row.memory_mib) for row in host.rows.values())
    assert not host.rows or promised + others_use_mib + 500 <= 8000


def test_memory_that_a_guest_has_touched_is_not_counted_twice() -> None:
    size = vm_memory_mib(1000)
    row = Holding(enclave=EnclaveId("e"), deployment=DEPLOYMENTS[0], memory_mib=1000, vcpus=1)
    for resident in (0, size // 2, size, size + 50):
        supply = HostSupply(
            memory_mib=8000,
            vcpus=8,
            addresses=ADDRESSES,
            disk_free_mib=0,
            mem_available_mib=7000 - resident,
            resident_mib={row.enclave: resident},
        )
        now = Accounts(supply, holdings=[row], now=NOW).free.memory_mib
        assert now == 7000 - max(size, resident)
        without = room(supply, [row], [], NOW, gone=[row.enclave])
        assert without.amounts.memory_mib == 7000


def test_what_is_free_is_never_negative_nor_more_than_all() -> None:
    supply = HostSupply(memory_mib=100, vcpus=1, addresses=ADDRESSES[:1], disk_free_mib=0)
    row = Holding(enclave=EnclaveId("e"), deployment=DEPLOYMENTS[0], memory_mib=500, vcpus=9)
    nothing, everything = Accounts(supply, holdings=[row], now=NOW).free, total(supply)
    assert (nothing.memory_mib, nothing.vcpus, nothing.addresses) == (0, 0, 1)
    assert (everything.memory_mib, everything.vcpus, everything.addresses) == (100, 1, 1)
