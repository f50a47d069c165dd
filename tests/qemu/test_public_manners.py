"""The reference guest boots as the public guest does: what is seen of it from outside, in order.

Each manner is held against the public guest's own programs (tinfoilsh/cvmimage: cmd/shim/main.go,
cmd/pid1/main.go, cmd/containers/main.go, internal/containers/status.go).
"""

from __future__ import annotations

import asyncio
import contextlib
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
Answer = tuple[int, bytes, str]


async def until_answer(
    fleet: Fleet, vm: Enclave, path: str, holds: Callable[[Answer], bool]
) -> Answer:
    """Ask until an answer is so; the test's own timeout ends it.

    A connection that was begun before the guest listens is answered late, or never.
    """
    while True:
        with contextlib.suppress(OSError, ValueError):
            async with asyncio.timeout(1):
                answer = await get(fleet, vm, path)
            if holds(answer):
                return answer
        await asyncio.sleep(0.02)


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
        "GUEST_SHIM_POLL_S": "3",
        "GUEST_SHIM_RESTART_S": "1.5",
        "GUEST_SLOW_STAGE": "containers:4",
    }
    async with lone_fleet(short_dir) as fleet:
        await fleet.launch(vm, order(reference_image(), variables=asked))
        first = await until_answer(fleet, vm, STAGES, lambda answer: answer[0] == 200)
        assert json.loads(first[1])["completed_at"] == NEVER
        status, body, key = await get(fleet, vm, "/")
        assert (status, key) == (503, first[2])
        assert body.startswith(b"shim is starting")

        real = (await until_answer(fleet, vm, METRICS, lambda answer: answer[0] == 200))[2]
        assert real != first[2]
        assert (await get(fleet, vm, CONTAINERS))[0] == 503
        status, body, _ = await get(fleet, vm, "/")
        assert (status, json.loads(body)["error"]["status"]) == (503, "pending")

        await until_refused(fleet, vm)
        again = await until_answer(fleet, vm, STAGES, lambda answer: answer[2] != real)
        assert again[2] != first[2]
        await until_answer(fleet, vm, "/", lambda answer: (answer[0], answer[2]) == (200, real))
        done = await get(fleet, vm, STAGES)
        assert json.loads(done[1])["completed_at"] != NEVER
        assert {stage["status"] for stage in stages(done).values()} <= {"ok", "skipped"}
        (web,) = stages(done)["containers"]["stages"]
        assert [phase["name"] for phase in web["stages"]] == ["pull", "start"]
        listed = json.loads((await get(fleet, vm, CONTAINERS))[1])["containers"]
        assert [(one["name"], one["played"]) for one in listed] == [("web", True)]


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
