"""The reference guest boots as the public guest does: what is seen of it from outside, in order.

Each manner is held against the public guest's own programs (tinfoilsh/cvmimage: cmd/shim/main.go,
cmd/pid1/main.go, cmd/containers/main.go, internal/containers/status.go).
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.enclaves.fleet import Fleet
from agent.enclaves.port import VmPhase
from agent.model.enclave import Enclave
from tests.fakes.vms import (
    get,
    lone_fleet,
    order,
    reference_image,
    row,
    until_printed,
)

pytestmark = [pytest.mark.qemu, pytest.mark.slow]
STAGES = "/.well-known/tinfoil-boot-stages"
CONTAINERS = "/.well-known/tinfoil-containers"
METRICS = "/.well-known/tinfoil-metrics"
NEVER = "0001-01-01T00:00:00Z"
AT_ONCE = 20  # which is never all of them: there is always one that asks now
EVERY_S = 0.25
PATIENCE_S = 4.5
Answer = tuple[int, bytes, str]


class Visitor:
    """Asks for one path after the other, over connections of their own, some at once.

    A guest on a busy host is slow to answer, and QEMU's user-mode network accepts a connection
    before the guest listens, and has it answered late, or never: nobody waits for one of them.
    `seen`: path and answer as they came; None where 443 was refused.
    """

    def __init__(self, fleet: Fleet, vm: Enclave) -> None:
        self.seen: list[tuple[str, Answer | None]] = []
        self._fleet, self._vm = fleet, vm

    async def run(self) -> None:
        """Until cancelled."""
        paths = itertools.cycle([STAGES, "/", METRICS, CONTAINERS])
        async with asyncio.TaskGroup() as visits:
            slots = asyncio.Semaphore(AT_ONCE)
            while True:
                await slots.acquire()
                visit = visits.create_task(self._visit(next(paths)))
                visit.add_done_callback(lambda _: slots.release())
                await asyncio.sleep(EVERY_S)

    async def _visit(self, path: str) -> None:
        answer = None
        try:
            async with asyncio.timeout(PATIENCE_S):
                answer = await get(self._fleet, self._vm, path)
        except TimeoutError:
            return
        except (OSError, ValueError):
            pass
        self.seen.append((path, answer))

    def answers(self, path: str) -> list[Answer]:
        return [answer for asked, answer in self.seen if asked == path and answer is not None]

    async def until(self, holds: Callable[[], bool]) -> None:
        """The test's own timeout ends it."""
        while not holds():
            await asyncio.sleep(0.05)


async def until_refused(fleet: Fleet, vm: Enclave) -> None:
    """QEMU's user-mode network accepts for the guest, and closes what that refuses."""
    while True:
        try:
            async with asyncio.timeout(5):
                await get(fleet, vm, STAGES)
        except (OSError, ValueError):
            return


def stages(answer: Answer) -> dict[str, Any]:
    return {stage["name"]: stage for stage in json.loads(answer[1])["stages"]}


async def test_it_shows_its_key_late_restarts_its_shim_and_tells_of_containers_at_the_end(
    short_dir: Path,
) -> None:
    vm = row("guestaa2", memory_mib=256)
    asked = {
        "GUEST_SHIM_POLL_S": "5",
        "GUEST_SHIM_RESTART_S": "1.5",
        "GUEST_SLOW_STAGE": "containers:7",
    }
    async with lone_fleet(short_dir) as fleet:
        await fleet.launch(vm, order(reference_image(), variables=asked))
        visitor = Visitor(fleet, vm)
        visiting = asyncio.create_task(visitor.run())
        try:
            await visitor.until(lambda: any(one[0] == 200 for one in visitor.answers("/")))
        finally:
            visiting.cancel()
            await asyncio.gather(visiting, return_exceptions=True)
        status, _, real = await get(fleet, vm, "/")
        assert status == 200
        done = await get(fleet, vm, STAGES)
        assert json.loads(done[1])["completed_at"] != NEVER
        assert {stage["status"] for stage in stages(done).values()} <= {"ok", "skipped"}
        (web,) = stages(done)["containers"]["stages"]
        assert [phase["name"] for phase in web["stages"]] == ["pull", "start"]
        listed = json.loads((await get(fleet, vm, CONTAINERS))[1])["containers"]
        assert [(one["name"], one["played"]) for one in listed] == [("web", True)]

        shown = [answer[2] if answer else None for _, answer in visitor.seen]
        first = next(key for key in shown if key)
        its_own = shown.index(real)
        assert set(shown[:its_own]) - {None} == {first}
        assert None in shown[its_own:], "443 was not seen refused"
        again = [key for key in shown[its_own:] if key not in (None, first, real)]
        assert len(set(again)) == 1
        assert first not in shown[shown.index(again[0]) :]

        early = [(body, key) for status, body, key in visitor.answers("/") if status == 503]
        starting = {key for body, key in early if body.startswith(b"shim is starting")}
        assert first in starting
        assert real not in starting
        told = [json.loads(body)["error"]["status"] for body, key in early if key == real]
        assert set(told) == {"pending"}
        assert json.loads(visitor.answers(STAGES)[0][1])["completed_at"] == NEVER
        assert 503 in {status for status, _, key in visitor.answers(CONTAINERS) if key == real}
        assert 200 in {status for status, _, key in visitor.answers(METRICS) if key == real}


async def test_a_boot_that_fails_early_parks_and_hears_no_power_button(short_dir: Path) -> None:
    """An agent gives every guest a name, so that the guest's own tests have the one without."""
    vm = row("guestaa2", memory_mib=256)
    async with lone_fleet(short_dir) as fleet:
        await fleet.launch(
            vm, order(reference_image(), variables={"GUEST_FAIL_STAGE": "identity"})
        )
        console = await until_printed(fleet, vm.id, b"parked")
        assert b"identity        failed" in console
        await until_refused(fleet, vm)
        assert fleet.view(vm.id).phase is VmPhase.RUNNING
        await fleet.stop(vm, grace_s=1)
        assert b"ignored: the boot failed" in fleet.console_tail(vm.id)
