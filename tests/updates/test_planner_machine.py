"""A machine that asks, crashes, kills VMs, flaps probes and lets time pass, in any order.

After every step the invariants of the domain hold; when the disturbances end, so does everything.
"""

from __future__ import annotations

import contextlib

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agent.enclaves.port import VmPhase
from agent.model.ids import LeaseId
from agent.model.reasons import Strategy
from agent.model.revision import Wish
from agent.model.update import Decided, Step
from agent.updates.admission.gpus import recorded
from agent.updates.errors import ConflictError, LeaseExpiredError, RefusedError, UnknownNameError
from agent.updates.planner.types import ActionKind, Plan
from simulator.simulated_host import NAME, SimulatedHost
from tests.fakes.invariants import at_rest, broken
from tests.fakes.moments import walk

TAGS = ("v1", "v2", "v3")
STEPS = (Step.STOP_OLD, Step.LAUNCH, Step.VERIFY, Step.SWITCH, Step.SOAK, Step.DRAIN)
BREAKABLE = (
    ActionKind.LAUNCH,
    ActionKind.APPLY_ROUTE,
    ActionKind.PREPARE,
    ActionKind.FINISH,
    ActionKind.RESET,
    ActionKind.STOP,
    ActionKind.REQUALIFY,
)


class Updates(RuleBasedStateMachine):
    gpus = 0

    def __init__(self) -> None:
        super().__init__()
        self.host = SimulatedHost(gpus=self.gpus)
        self.answer: Plan | None = None
        self.leases: list[LeaseId] = []

    def teardown(self) -> None:
        """Calm down, then everything must have come to an end."""
        host = self.host
        host.broken.clear()
        host.sick_tags.clear()
        host.settle(seconds=4000, step_s=10)
        update = host.read(lambda tx: tx.running_update(NAME))
        if update is not None:
            assert update.staging
            assert update.step is Step.ACCEPT
        assert (broken(host), at_rest(host)) == ([], [])
        host.close()

    @rule(
        tag=st.sampled_from(TAGS), staging=st.booleans(), insist=st.booleans(), old=st.booleans()
    )
    def ask(self, tag: str, staging: bool, insist: bool, old: bool) -> None:
        strategy = Strategy.STOP_THEN_START if insist else None
        with contextlib.suppress(RefusedError, ConflictError):
            self.host.request(tag, staging=staging, strategy=strategy, restart_old_on_failure=old)

    @rule(
        own=st.booleans(), ttl=st.sampled_from([5, 100]), memory_mib=st.sampled_from([256, 1700])
    )
    def promise(self, own: bool, ttl: int, memory_mib: int) -> None:
        with contextlib.suppress(RefusedError, ConflictError):
            self.leases.append(self.host.promise(own=own, ttl_s=ttl, memory_mib=memory_mib).id)

    @rule(tag=st.sampled_from(TAGS), which=st.integers(0, 3), insist=st.booleans())
    @precondition(lambda self: self.leases)
    def ask_with_a_lease(self, tag: str, which: int, insist: bool) -> None:
        """It is spent by that and by nothing else, expired or given back as it may be."""
        lease = self.leases[which % len(self.leases)]
        there = [row.id for row in self.host.read(lambda tx: tx.leases()) if not row.expired]
        strategy = Strategy.STOP_THEN_START if insist else None
        try:
            self.host.request(tag, lease=lease, strategy=strategy)
        except (RefusedError, ConflictError):
            return
        assert lease in there
        assert lease not in [row.id for row in self.host.read(lambda tx: tx.leases())]

    @rule(which=st.integers(0, 3))
    @precondition(lambda self: self.leases)
    def a_lease_is_lost(self, which: int) -> None:
        """Whoever held it gives it back, or never knew that it was granted until it expired."""
        with contextlib.suppress(UnknownNameError, LeaseExpiredError):
            self.host.give_back(self.leases.pop(which % len(self.leases)))

    @rule()
    def the_keeper_looks_at_leases(self) -> None:
        self.host.expire_leases()

    @rule()
    def accept(self) -> None:
        update = self.host.read(lambda tx: tx.running_update(NAME))
        if update is not None and update.staging and update.step is Step.ACCEPT:
            self.host.flag(accepted=True)

    @rule()
    def cancel(self) -> None:
        update = self.host.read(lambda tx: tx.running_update(NAME))
        if update is not None and update.decided is Decided.UNDECIDED:
            self.host.flag(cancel_requested=True)

    @rule()
    def roll_back_warm(self) -> None:
        self.host.roll_back_warm()
        self.answer = None

    @rule(wish=st.sampled_from([Wish.STOP, Wish.DELETE]))
    def wind_down(self, wish: Wish) -> None:
        self.host.wish(wish)

    @rule()
    def think(self) -> None:
        self.answer = self.host.think()

    @rule(which=st.integers(0, 5), dies=st.booleans())
    @precondition(lambda self: self.answer is not None and self.answer.actions)
    def perform(self, which: int, dies: bool) -> None:
        """One wanted action; perhaps the agent dies right after it."""
        assert self.answer is not None
        actions = sorted(self.answer.actions, key=lambda a: (a.kind, a.enclave or "", a.key))
        self.host.perform(actions[which % len(actions)], forget=dies)
        if dies:
            self.crash()
        self.answer = None  # what is wanted may have changed

    @rule()
    @precondition(lambda self: self.answer is not None and self.answer.actions)
    def a_stop_takes_its_time(self) -> None:
        assert self.answer is not None
        for action in self.answer.actions:
            if action.kind is ActionKind.STOP and action.enclave in self.host.vms:
                self.host.begin_stop(action.enclave)

    @rule()
    def crash(self) -> None:
        self.host.crash()
        self.answer = None

    @rule()
    def the_host_is_rebooted(self) -> None:
        self.host.reboot()
        self.answer = None

    @rule(which=st.integers(0, 3))
    def a_vm_dies(self, which: int) -> None:
        running = [key for key, vm in self.host.vms.items() if vm.phase is VmPhase.RUNNING]
        if running:
            self.host.die(running[which % len(running)])
            self.answer = None

    @rule(which=st.integers(0, 3))
    def a_vm_vanishes(self, which: int) -> None:
        if self.host.vms:
            self.host.vanish(list(self.host.vms)[which % len(self.host.vms)])
            self.answer = None

    @rule()
    def guests_boot(self) -> None:
        self.host.boot_all()

    @rule(which=st.integers(0, 3), healthy=st.booleans())
    def probes_flap(self, which: int, healthy: bool) -> None:
        booted = [key for key, vm in self.host.vms.items() if vm.booted]
        if booted:
            self.host.set_health(booted[which % len(booted)], healthy)

    @rule(tag=st.sampled_from(TAGS))
    def a_release_is_sick(self, tag: str) -> None:
        self.host.sick_tags ^= {tag}

    @rule(kind=st.sampled_from(BREAKABLE))
    def something_breaks_or_is_mended(self, kind: ActionKind) -> None:
        self.host.broken ^= {kind}

    @rule(seconds=st.sampled_from([1, 6, 31, 200]))
    def time_passes(self, seconds: int) -> None:
        self.host.clock.advance(seconds)

    @rule(seconds=st.sampled_from([-86_400, 86_400]))
    def the_wall_clock_jumps(self, seconds: int) -> None:
        self.host.clock.jump_wall(seconds)

    @rule(settle=st.sampled_from([4, 20, 120]))
    def a_calm_while(self, settle: int) -> None:
        self.host.settle(seconds=settle)
        self.answer = None

    @initialize(serves=st.booleans())
    def something_serves(self, serves: bool) -> None:
        if serves:
            self.host.request("v1")
            self.host.settle(seconds=30)

    @rule(step=st.sampled_from(STEPS), more=st.integers(0, 3), cancel=st.booleans())
    @precondition(lambda self: self.host.read(lambda tx: tx.running_update(NAME)))
    def it_goes_on_to(self, step: Step, more: int, cancel: bool) -> None:
        """Moment by moment to a step and a little further, where the next thing happens."""
        moments = walk(self.host)
        for _ in range(60):
            if self.host.current().step is step or next(moments, self) is self:
                break
        for _ in range(more):
            next(moments, None)
        self.answer = None
        if cancel:
            self.cancel()

    @invariant()
    def all_holds(self) -> None:
        assert broken(self.host) == []

    @invariant()
    def no_gpu_is_anybodys_before_it_was_requalified(self) -> None:
        """One owner each; and a VM that runs has nothing that another was given."""
        rows = self.host.read(lambda tx: tx.enclaves())
        running = [gpu for row in rows if row.id in self.host.vms for gpu in row.gpus]
        assert len(running) == len(set(running))
        claims = self.host.read(lambda tx: tx.claims())
        owned = {claim.key: claim.holder for claim in claims if claim.kind == "gpu"}
        for row in rows:
            if row.id in self.host.vms:
                assert all(owned.get(gpu) == row.id for gpu in row.gpus)
        dirty = {c.bdf for c in self.host.read(lambda tx: tx.gpu_conditions()) if not c.clean}
        boards = self.host.read(lambda tx: recorded(tx, self.host.supply())).boards
        free = {seat.bdf for one in boards for seat in one.seats if seat.condition == "ready"}
        assert not dirty & free - {gpu for row in rows for gpu in row.gpus}

    @rule()
    def the_workshop_cleans(self) -> None:
        self.host.clean_gpus()


Updates.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestUpdates = Updates.TestCase


class UpdatesWithOneGpu(Updates):
    """There is never room for a second copy."""

    gpus = 1


class UpdatesWithTwoGpus(Updates):
    """There is, once the second GPU is clean."""

    gpus = 2


UpdatesWithOneGpu.TestCase.settings = settings(
    max_examples=30, stateful_step_count=40, deadline=None
)
UpdatesWithTwoGpus.TestCase.settings = UpdatesWithOneGpu.TestCase.settings
TestUpdatesWithOneGpu = UpdatesWithOneGpu.TestCase
TestUpdatesWithTwoGpus = UpdatesWithTwoGpus.TestCase
