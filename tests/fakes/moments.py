"""An update that goes well, one moment at a time: at each of them something may happen to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from agent.model.reasons import Strategy
from agent.model.update import Update
from simulator.simulated_host import SimulatedHost


@dataclass(frozen=True)
class Case:
    """An update of one kind, on a host of its own."""

    strategy: Strategy
    staging: bool = False
    gpus: int = 0

    def __str__(self) -> str:
        return f"{self.strategy}{'-staged' if self.staging else ''}{'-gpu' if self.gpus else ''}"

    def begin(self) -> SimulatedHost:
        """The host, with the update just admitted: `v1` serves, unless it is fresh."""
        host = SimulatedHost(gpus=self.gpus)
        host.policy = replace(host.policy, drain_s=host.policy.soak_s + 5)
        if self.strategy is Strategy.FRESH:
            host.request("v2")
            return host
        host.serve("v1")
        for vm in host.vms.values():
            vm.connections = 1  # so that there is something to drain
        host.request("v2", strategy=self.strategy, staging=self.staging)
        assert host.current().strategy is self.strategy
        return host


CASES = [
    Case(Strategy.FRESH),
    Case(Strategy.BLUE_GREEN),
    Case(Strategy.BLUE_GREEN, staging=True),
    Case(Strategy.STOP_THEN_START),
    Case(Strategy.STOP_THEN_START, staging=True),
    Case(Strategy.STOP_THEN_START, gpus=1),
]


def walk(host: SimulatedHost) -> Iterator[None]:
    """From moment to moment, to the end: after each turn, each action, and each second."""
    waited = 0
    while host.current().running:
        answer = host.think()
        yield
        todo = [a for a in answer.actions if a not in host.outcomes] if answer else []
        for action in sorted(todo, key=lambda a: (a.kind, a.enclave or "")):
            host.perform(action)
            yield
        if todo:
            continue
        waited += 1
        if waited % 2 == 0:
            host.boot_all()
        if waited > 6 and host.current().staging:
            host.flag(accepted=True)
        host.clock.advance(1 if waited < 8 else 5)


def at_every_moment(
    case: Case, happen: Callable[[SimulatedHost], None]
) -> Iterator[tuple[SimulatedHost, Update]]:
    """Let it happen once at each moment of the update; the host then, and the update before."""
    moments = 0
    while True:
        host = case.begin()
        try:
            steps = walk(host)
            for _ in range(moments):
                if next(steps, host) is host:
                    return
            before = host.current()
            happen(host)
            yield host, before
        finally:
            host.close()
        moments += 1
