"""GPUs on small hosts: the decision equals brute force, gives nothing twice, and is monotone."""

from __future__ import annotations

import datetime as dt
from itertools import combinations

import msgspec
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from agent.capacity.accounts import Accounts
from agent.capacity.boards import Board, Condition, Grouping, Seat
from agent.capacity.decision import decide
from agent.capacity.supply import Admission, Grant, Holding, HostSupply, Question
from agent.model.clock import Instant
from agent.model.gpu import CcMode
from agent.model.ids import Bdf, DeploymentName, EnclaveId, LeaseId
from agent.model.lease import Lease
from agent.model.reasons import DecidedStrategy, ReasonCode, Strategy
from agent.model.resources import Demand
from simulator.boards import bdf

NOW = Instant(boot_id="b", boottime_s=100.0, wall=dt.datetime(2026, 1, 1, tzinfo=dt.UTC))
API, OTHER = DeploymentName("api"), DeploymentName("other")
OLD = EnclaveId("old")
MODES = [CcMode.ON, CcMode.ON, CcMode.PPCIE, None]
CONDITIONS = [Condition.READY] * 5 + list(Condition)
ORDER = [DecidedStrategy.STOP_THEN_START, DecidedStrategy.BLUE_GREEN, DecidedStrategy.FRESH]


@st.composite
def boards(draw: st.DrawFn) -> Board:
    """Up to four GPUs and a switch, or up to three cards."""
    hgx = draw(st.booleans())
    count, first = draw(st.integers(1, 4 if hgx else 3)), 1 if hgx else 0x11
    names = [bdf(first + n) for n in range(count)]
    switches = [bdf(0x81)] if hgx and draw(st.booleans()) else []
    coupled = frozenset(names[:2]) if count > 1 and draw(st.integers(0, 3)) == 0 else frozenset()

    def seat(name: Bdf) -> Seat:
        return Seat(
            bdf=name,
            condition=draw(st.sampled_from(CONDITIONS)),
            mode=draw(st.sampled_from(MODES)),
            numa_node=draw(st.sampled_from([0, 1, None])),
            viable=draw(st.integers(0, 9)) != 0,
            bound_with=coupled - {name} if name in coupled else frozenset(),
        )

    groupings = [Grouping(size=1, mode=CcMode.ON)]
    if hgx and count > 1:
        groupings.append(Grouping(size=count, mode=CcMode.PPCIE, with_switches=True))
    if count > 2 and draw(st.booleans()):
        groupings.append(Grouping(size=2, mode=CcMode.ON))
    return Board(
        seats=tuple(map(seat, names)),
        switches=tuple(map(seat, switches)),
        groupings=tuple(groupings),
        one_mode=hgx,
    )


@st.composite
def hosts(draw: st.DrawFn) -> tuple[HostSupply, list[Holding], list[Lease]]:
    """One board or two; each ready GPU free, a neighbour's, promised, or the deployment's own."""
    chosen = draw(st.lists(boards(), min_size=1, max_size=2, unique_by=lambda b: b.one_mode))
    whose: dict[str, list[Bdf]] = {"free": [], "other": [], "lease": [], "own": []}
    for board in chosen:
        for seat in (*board.seats, *board.switches):
            ready = seat.condition is Condition.READY
            holder = draw(st.sampled_from(["free", "free", *whose])) if ready else "free"
            whose[holder].append(seat.bdf)
    holdings = [
        Holding(enclave=EnclaveId(name), deployment=of, memory_mib=1, vcpus=1, gpus=tuple(gpus))
        for name, of, gpus in (("other", OTHER, whose["other"]), ("old", API, whose["own"]))
        if gpus
    ]
    leases = [promise(whose["lease"], None)] if whose["lease"] else []
    host = HostSupply(
        memory_mib=10_000,
        vcpus=50,
        addresses=tuple(f"10.0.0.{n}" for n in range(2, 12)),
        disk_free_mib=0,
        boards=tuple(chosen),
        numa_distances=((10, 21), (21, 10)),
    )
    return host, holdings, leases


def promise(gpus: list[Bdf], deployment: DeploymentName | None) -> Lease:
    return Lease(
        id=LeaseId("l"),
        holder="local:0",
        deployment=deployment,
        strategy=Strategy.FRESH,
        demand=Demand(memory_mib=1, vcpus=1, gpus=len(gpus)),
        gpus=tuple(gpus),
        address=None,
        created_at=NOW,
        expires_at=NOW.plus(60),
    )


def ask(
    size: int,
    host: HostSupply,
    holdings: list[Holding],
    leases: list[Lease],
    insisted: Strategy | None = None,
) -> Admission:
    question = Question(
        demand=Demand(memory_mib=1, vcpus=1, gpus=size),
        deployment=API,
        own=tuple(one.enclave for one in holdings if one.deployment == API),
        insisted=insisted,
    )
    return decide(question, Accounts(host, holdings=holdings, leases=leases, now=NOW))


def every_group(
    host: HostSupply, size: int, taken: set[Bdf], cleaned: bool
) -> list[tuple[Bdf, ...]]:
    """Every set of GPUs that may be given out, by the rules as they are written down."""
    found = []
    for board in host.boards:
        everything = [*board.seats, *board.switches]
        for grouping in [one for one in board.groupings if one.size == size]:
            for chosen in combinations(board.seats, size):
                switches = list(board.switches) if grouping.with_switches else []
                if grouping.with_switches and not switches:
                    continue
                group = [*chosen, *switches]
                names = {seat.bdf for seat in group}
                clean = all(
                    seat.condition is Condition.READY
                    or (cleaned and seat.condition is Condition.CLEANING)
                    for seat in group
                )
                alone = not names & taken
                viable = all(seat.viable and seat.bound_with <= names for seat in group)
                in_mode = all(seat.mode is grouping.mode for seat in group)
                idle = all(
                    seat.bdf not in taken
                    and seat.condition is not Condition.BUSY
                    and (cleaned or seat.condition is not Condition.CLEANING)
                    for seat in everything
                )
                if clean and alone and viable and (in_mode or idle or not board.one_mode):
                    found.append(tuple(seat.bdf for seat in chosen))
    return found


def brute_force(
    size: int, host: HostSupply, holdings: list[Holding], leases: list[Lease]
) -> DecidedStrategy:
    promised = {gpu for lease in leases for gpu in lease.gpus}
    taken = promised | {gpu for one in holdings for gpu in one.gpus}
    own = {gpu for one in holdings if one.deployment == API for gpu in one.gpus}
    runs = any(one.deployment == API for one in holdings)
    if every_group(host, size, taken, cleaned=False):
        return DecidedStrategy.BLUE_GREEN if runs else DecidedStrategy.FRESH
    if not runs or every_group(host, size, taken, cleaned=True):
        return DecidedStrategy.REFUSE
    if every_group(host, size, taken - own, cleaned=False):
        return DecidedStrategy.STOP_THEN_START
    return DecidedStrategy.REFUSE


@settings(max_examples=250, deadline=None)
@given(hosts(), st.integers(1, 4))
def test_the_decision_equals_brute_force(
    host: tuple[HostSupply, list[Holding], list[Lease]], size: int
) -> None:
    supply, holdings, leases = host
    answer = ask(size, supply, holdings, leases)
    wanted = brute_force(size, supply, holdings, leases)
    assert answer.decision.strategy is wanted
    if wanted is DecidedStrategy.REFUSE:
        (reason,) = answer.decision.reasons[:1]
        passing = answer.decision.retry_after_s is not None
        assert passing == (reason.code is ReasonCode.GPUS_DIRTY)
        assert answer.decision.reasons


@settings(max_examples=250, deadline=None)
@given(hosts(), st.integers(1, 4))
def test_a_second_copy_means_that_a_disjoint_full_set_exists(
    host: tuple[HostSupply, list[Holding], list[Lease]], size: int
) -> None:
    supply, holdings, leases = host
    answer = ask(size, supply, holdings, leases)
    assume(answer.grant is not None)
    assert answer.grant is not None
    given_away = [*answer.grant.gpus, *answer.grant.switches]
    staying = [one for one in holdings if one.enclave not in answer.grant.replaces]
    taken = [gpu for one in (*staying, *leases) for gpu in one.gpus]
    assert not set(given_away) & set(taken)
    assert len(set(answer.grant.gpus)) == size
    if answer.decision.strategy is DecidedStrategy.BLUE_GREEN:
        own = {gpu for one in holdings if one.deployment == API for gpu in one.gpus}
        assert not set(given_away) & own
    assert set(answer.grant.gpus) <= set(supply.gpus(Condition.READY))


@settings(max_examples=300, deadline=None)
@given(hosts(), st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 4)), max_size=6))
def test_a_story_of_admissions_never_gives_one_gpu_to_two(
    host: tuple[HostSupply, list[Holding], list[Lease]], story: list[tuple[str, int]]
) -> None:
    supply, holdings, leases = host
    for number, (name, size) in enumerate(story):
        question = Question(
            demand=Demand(memory_mib=1, vcpus=1, gpus=size),
            deployment=DeploymentName(name),
            own=tuple(one.enclave for one in holdings if one.deployment == name),
        )
        admission = decide(question, Accounts(supply, holdings=holdings, leases=leases, now=NOW))
        grant: Grant | None = admission.grant
        if grant is None:
            continue
        holdings = [one for one in holdings if one.enclave not in grant.replaces]
        holdings.append(
            Holding(
                enclave=EnclaveId(f"e{number}"),
                deployment=DeploymentName(name),
                memory_mib=1,
                vcpus=1,
                gpus=grant.gpus,
                switches=grant.switches,
            )
        )
        held = [gpu for one in holdings for gpu in (*one.gpus, *one.switches)]
        held += [gpu for lease in leases for gpu in lease.gpus]
        assert len(held) == len(set(held))


@settings(max_examples=250, deadline=None)
@given(
    hosts(),
    st.integers(1, 4),
    st.sampled_from([None, Strategy.BLUE_GREEN, Strategy.STOP_THEN_START]),
    st.data(),
)
def test_more_that_is_free_never_makes_a_decision_worse(
    host: tuple[HostSupply, list[Holding], list[Lease]],
    size: int,
    insisted: Strategy | None,
    data: st.DataObject,
) -> None:
    """A GPU gets well, a neighbour stops, a lease ends. Only a cleaning may be waited for."""
    supply, holdings, leases = host
    before = ask(size, supply, holdings, leases, insisted)
    what = data.draw(st.sampled_from(["heal", "stop", "end"]))
    if what == "stop":
        holdings = [one for one in holdings if one.deployment == API]
    elif what == "end":
        leases = []
    else:
        seats = [seat for board in supply.boards for seat in (*board.seats, *board.switches)]
        lucky = data.draw(st.sampled_from(seats)).bdf
        supply = msgspec.structs.replace(supply, boards=healed(supply.boards, lucky))
    after = ask(size, supply, holdings, leases, insisted)
    if not before.decision.refused and after.decision.retry_after_s is None:
        assert after.decision.strategy in ORDER[ORDER.index(before.decision.strategy) :]
    if before.decision.refused and before.decision.retry_after_s is None:
        return
    if not before.decision.refused:
        # a wait instead of an outage is no worse; instead of a second copy it would be
        better = before.decision.strategy in ORDER[1:]
        assert not (better and after.decision.refused)


def healed(boards: tuple[Board, ...], lucky: Bdf) -> tuple[Board, ...]:
    def better(seat: Seat) -> Seat:
        if seat.bdf != lucky:
            return seat
        return msgspec.structs.replace(
            seat, condition=Condition.READY, viable=True, bound_with=seat.bound_with
        )

    return tuple(
        msgspec.structs.replace(
            board,
            seats=tuple(map(better, board.seats)),
            switches=tuple(map(better, board.switches)),
        )
        for board in boards
    )


@settings(max_examples=200, deadline=None)
@given(hosts(), st.integers(1, 4))
def test_the_same_is_chosen_every_time_and_it_is_the_nearest_then_the_first(
    host: tuple[HostSupply, list[Holding], list[Lease]], size: int
) -> None:
    supply, holdings, leases = host
    answer = ask(size, supply, holdings, leases)
    assert answer == ask(size, supply, list(holdings), list(leases))
    assume(answer.grant is not None and not answer.grant.replaces)
    assert answer.grant is not None
    taken = {gpu for one in (*holdings, *leases) for gpu in one.gpus}
    groups = every_group(supply, size, taken, cleaned=False)
    seats = {seat.bdf: seat for board in supply.boards for seat in board.seats}

    def order(group: tuple[Bdf, ...]) -> tuple[bool, int, tuple[Bdf, ...]]:
        nodes = [seats[one].numa_node for one in group]
        pairs = list(combinations(nodes, 2))
        spread = max(
            (255 if None in pair else 10 if pair[0] == pair[1] else 21 for pair in pairs),
            default=0,
        )
        return switches_mode(supply, group), spread, group

    assert answer.grant.gpus == min(groups, key=order)


def switches_mode(supply: HostSupply, group: tuple[Bdf, ...]) -> bool:
    for board in supply.boards:
        mine = [seat for seat in board.seats if seat.bdf in group]
        for grouping in board.groupings:
            if mine and grouping.size == len(group):
                along = board.switches if grouping.with_switches else ()
                return any(seat.mode is not grouping.mode for seat in (*mine, *along))
    raise AssertionError(group)
