"""Every intent that is persisted before an action is needed: without it a crash goes wrong.

For each write of a story that is followed by a change of the host: the agent acts on it although
it never became durable, and dies. Then the host is astray, or ends otherwise than it should. Which
writes these are is not listed: a clean run of the story tells.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from agent.model.reasons import Strategy
from agent.model.revision import Wish
from agent.model.update import Step
from agent.updates.planner.types import Action, ActionKind, Write
from simulator.memory_store import MemoryStore
from simulator.simulated_host import NAME, SimulatedHost
from tests.fakes.invariants import broken

# What changes the host. To forget a deployment needs no intent beyond the wish of its request.
EFFECTS = {
    ActionKind.LAUNCH,
    ActionKind.FINISH,
    ActionKind.STOP,
    ActionKind.APPLY_ROUTE,
    ActionKind.RESET,
}
STRAIGHT = Strategy.STOP_THEN_START


class DiedError(Exception):
    """The agent, before what it wanted to persist next was durable."""


class LossyStore(MemoryStore):
    """A disk that can be put back to an earlier moment."""

    def keep(self) -> None:
        self._kept = self._state.copy()

    def put_back(self) -> None:
        self._state = self._kept


@dataclass
class Host(SimulatedHost):
    """Counts what is persisted; the write of number `loses` never becomes durable."""

    loses: int | None = None
    followed: list[list[ActionKind]] = field(default_factory=list)
    bare: set[int] = field(default_factory=set)  # writes that note something, and decide nothing
    counting: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.store = LossyStore(self.clock.now)

    def persist(self, write: Write) -> None:
        if not self.counting:
            super().persist(write)
            return
        if self.loses == len(self.followed):
            raise DiedError
        self.followed.append([])
        if not write.events:
            self.bare.add(len(self.followed))
        if self.loses == len(self.followed):
            self.store.keep()
        super().persist(write)

    def perform(self, action: Action, *, forget: bool = False) -> None:
        if self.followed and action.kind in EFFECTS:
            self.followed[-1].append(action.kind)
        super().perform(action, forget=forget)

    def play(self, story: Story) -> list[str]:
        """To the end, through a death; every invariant that was seen not to hold."""
        story.before(self)
        self.counting = True
        story.act(self)
        with contextlib.suppress(DiedError):
            self.settle()
        wrong = []
        if self.loses is not None:
            self.die_with_what_is_lost()
            wrong = broken(self)
            self.settle()
        return wrong + broken(self)

    def die_with_what_is_lost(self) -> None:
        self.loses = None
        self.store.put_back()
        self.crash()

    def outcome(self) -> tuple[object, ...]:
        deployment = self.read(lambda tx: tx.deployment(NAME))
        if deployment is None:
            return (None, self.vms)
        update = self.current()
        relaunched = len(deployment.relaunches)
        return (update.status, update.step, deployment.fault, self.serving_tag(), relaunched)


Do = Callable[[Host], object]


def serving(host: Host) -> None:
    host.serve("v1")


def at(step: Step, **options: object) -> Do:
    """An update to v2, at that step."""

    def come_there(host: Host) -> None:
        host.serve("v1")
        host.request("v2", **options)
        host.until(step)

    return come_there


@dataclass(frozen=True)
class Story:
    """`before` is taken for granted; every write of what `act` begins is lost once."""

    act: Do
    before: Do = serving
    gpus: int = 0


def failing(host: Host, **options: object) -> None:
    host.sick_tags.add("v2")
    host.request("v2", **options)


def sick(host: Host) -> None:
    """The new one, after the switch."""
    host.sick_tags.add("v2")
    host.set_health(host.current().enclave, healthy=False)


def old_one_ends(host: Host) -> None:
    old = host.current().from_enclave
    assert old is not None
    host.die(old)


STORIES: dict[str, Story] = {
    "fresh": Story(lambda host: host.request("v1"), before=lambda _: None),
    "blue_green": Story(lambda host: host.request("v2")),
    "stop_then_start": Story(lambda host: host.request("v2", strategy=STRAIGHT)),
    "with all the GPUs": Story(lambda host: host.request("v2"), gpus=1),
    "beside, with GPUs": Story(lambda host: host.request("v2"), gpus=2),
    "failing": Story(failing),
    "failing after the stop": Story(lambda host: failing(host, strategy=STRAIGHT)),
    "old one back": Story(
        lambda host: failing(host, strategy=STRAIGHT, restart_old_on_failure=True)
    ),
    "accept": Story(lambda host: host.flag(accepted=True), at(Step.ACCEPT, staging=True)),
    "accept the stop": Story(
        lambda host: host.flag(accepted=True),
        at(Step.ACCEPT, staging=True, strategy=STRAIGHT),
    ),
    "cancel": Story(lambda host: host.flag(cancel_requested=True), at(Step.BOOT)),
    "cancel after the stop": Story(
        lambda host: host.flag(cancel_requested=True), at(Step.BOOT, strategy=STRAIGHT)
    ),
    "revert": Story(sick, at(Step.SOAK)),
    "warm rollback": Story(lambda host: host.roll_back_warm(), at(Step.SOAK)),
    "the old one ends in the boot": Story(old_one_ends, at(Step.BOOT)),
    "stop": Story(lambda host: host.wish(Wish.STOP)),
    "delete": Story(lambda host: host.wish(Wish.DELETE)),
    "ended by itself": Story(lambda host: host.die(next(iter(host.vms)))),
}


@pytest.mark.parametrize("story", STORIES.values(), ids=STORIES)
def test_an_intent_that_was_not_persisted_shows(story: Story) -> None:
    with contextlib.closing(Host(gpus=story.gpus)) as clean:
        assert clean.play(story) == []
        wanted = clean.outcome()
    intents = [number for number, acts in enumerate(clean.followed, 1) if acts]
    assert intents
    unneeded = set()
    for number in intents:
        with contextlib.closing(Host(gpus=story.gpus, loses=number)) as host:
            if not host.play(story) and host.outcome() == wanted:
                unneeded.add(number)
    # Both follow from what was decided before: done again they find a guest down, nothing open.
    again = {ActionKind.FINISH, ActionKind.RESET}
    harmless = {n for n, acts in enumerate(clean.followed, 1) if set(acts) <= again}
    assert unneeded <= clean.bare | harmless
    print(f"{len(intents)} intents, {len(unneeded)} of them mere notes")
