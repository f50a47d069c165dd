"""A VM that ends while the host shuts down is not relaunched, and no update fails for it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from agent.model.ids import DeploymentName
from agent.model.update import Decided, Step, UpdateStatus
from simulator.instant_host import InstantHost
from simulator.manual_clock import ManualClock
from simulator.memory_store import MemoryStore
from simulator.simulated_host import NAME, SimulatedHost

HELLO = DeploymentName("hello")


@pytest.fixture
def host() -> Iterator[SimulatedHost]:
    host = SimulatedHost()
    yield host
    host.close()


def power_off(host: SimulatedHost) -> None:
    """Every VM ends; the agent lives longer than is good."""
    host.stopping = True
    for key in list(host.vms):
        host.die(key)
    host.settle(seconds=120)


def reboot(host: SimulatedHost) -> None:
    host.stopping = False
    host.clock.reboot("boot-2")
    host.vms.clear()
    host.data_plane = None
    host.crash()
    host.settle()


def test_what_ends_with_the_host_is_relaunched_after_the_reboot_alone(
    host: SimulatedHost,
) -> None:
    host.serve("v1")
    done = len(host.log)
    power_off(host)
    assert host.log[done:] == []
    deployment = host.read(lambda tx: tx.deployment(NAME))
    assert deployment is not None
    assert (deployment.relaunches, deployment.fault) == ((), None)
    reboot(host)
    assert host.serving_tag() == "v1"


@pytest.mark.parametrize("step", [Step.BOOT, Step.VERIFY, Step.SOAK])
def test_an_update_is_as_it_was_when_the_host_went_down(host: SimulatedHost, step: Step) -> None:
    host.serve("v1")
    host.request("v2")
    host.until(step)
    power_off(host)
    assert host.current().status not in (UpdateStatus.FAILED, UpdateStatus.CANCELLED)
    assert host.current().step is step
    assert host.current().decided is not Decided.FAIL
    reboot(host)
    assert host.serving_tag() in ("v1", "v2")
    assert len(host.vms) == 1


def test_a_shutdown_that_did_not_come_is_soon_noticed(host: SimulatedHost) -> None:
    host.serve("v1")
    host.stopping = True
    (key,) = host.vms
    host.die(key)
    answer = host.think()
    assert answer is not None
    assert answer.wake_at is not None
    assert answer.wake_at.boottime_s - host.clock.now().boottime_s <= 5
    host.stopping = False
    host.settle()
    assert host.serving_tag() == "v1"


class Asked:
    """A host that is asked whether it shuts down, and takes its time."""

    def __init__(self, *, answer: bool) -> None:
        self.answer = answer
        self.times = 0

    async def __call__(self) -> bool:
        self.times += 1
        await asyncio.sleep(0.02)
        return self.answer


Begin = Callable[[Asked], Awaitable[InstantHost]]


@pytest_asyncio.fixture
async def begin(tmp_path: Path) -> AsyncIterator[Begin]:
    async with contextlib.AsyncExitStack() as stack:

        async def begin(asked: Asked) -> InstantHost:
            clock = ManualClock()
            host = InstantHost(MemoryStore(clock.now), clock, tmp_path, host_stopping=asked)
            await host.runtime.start()
            stack.push_async_callback(host.runtime.close)
            await host.deploy(HELLO, "v1")
            return host

        yield begin


async def die(host: InstantHost) -> None:
    """The only VM is gone; then every turn that this asks for is made."""
    host.vms.running.clear()
    host.vms.changed.notify()
    for _ in range(20):
        await asyncio.sleep(0.01)
        host.clock.advance(1)
        host.runtime.wakeups.notify()


async def test_the_host_is_asked_before_a_vm_that_ended_is_launched_again(begin: Begin) -> None:
    asked = Asked(answer=True)
    host = await begin(asked)
    assert asked.times == 0
    await die(host)
    assert asked.times > 0
    assert host.vms.running == {}
    asked.answer = False
    for _ in range(20):
        await asyncio.sleep(0.01)
        host.clock.advance(1)
        host.runtime.wakeups.notify()
    assert len(host.vms.running) == 1


async def test_a_host_that_stays_up_has_its_vm_again(begin: Begin) -> None:
    asked = Asked(answer=False)
    host = await begin(asked)
    await die(host)
    assert len(host.vms.running) == 1
    assert asked.times >= 1
