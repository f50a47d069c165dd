"""How far the end of a VM is, as it is shown."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from agent.enclaves.fleet import Fleet
from agent.enclaves.port import ABSENT, Teardown, VmPhase, VmView
from agent.host.process import identify
from agent.model.ids import EnclaveId
from agent.model.power_button import Press
from tests.fakes import tiny_kernels
from tests.fakes.vms import lone_fleet, order, row, tiny_image

pytestmark = pytest.mark.qemu


async def never_booted() -> bool:
    return False


async def watch(fleet: Fleet, enclave: EnclaveId, seen: list[VmView]) -> None:
    while True:
        count = fleet.changed.count
        view = fleet.view(enclave)
        if not seen or seen[-1] != view:
            seen.append(view)
        await fleet.changed.beyond(count)


async def test_a_teardown_is_shown_phase_by_phase(short_dir: Path) -> None:
    vm = row("aaaaaaa2")
    image = tiny_image(short_dir / "image", tiny_kernels.halting())
    shown: list[Teardown | None] = []
    async with lone_fleet(short_dir) as fleet:
        notify = fleet.changed.notify

        def note() -> None:
            view = fleet.view(vm.id)
            if view.phase is VmPhase.STOPPING and (not shown or shown[-1] is not view.teardown):
                shown.append(view.teardown)
            notify()

        fleet.changed.notify = note  # type: ignore[method-assign] # every view, however short
        await fleet.launch(vm, order(image))
        await fleet.stop(vm, grace_s=0)
        assert fleet.view(vm.id) == ABSENT
    assert shown[-3:] == [Teardown.ASKED, Teardown.QEMU_GONE, Teardown.RELEASED]


async def test_a_guest_that_powers_off_is_down_before_its_qemu_is_gone(short_dir: Path) -> None:
    vm = row("aaaaaaa2")
    image = tiny_image(short_dir / "image", tiny_kernels.halting())
    seen: list[VmView] = []
    async with lone_fleet(short_dir) as fleet:
        await fleet.launch(vm, order(image))
        watching = asyncio.create_task(watch(fleet, vm.id, seen))
        await asyncio.sleep(0)
        monitor = fleet._drivers[vm.id]._vm.monitor  # type: ignore[union-attr]
        await monitor.execute("system_reset")  # with -no-reboot the guest is down
        await asyncio.sleep(0.1)
        await fleet.stop(vm, grace_s=0)
        watching.cancel()
    downs = [view.teardown for view in seen if view.phase is VmPhase.STOPPING]
    assert Teardown.GUEST_DOWN in downs


async def test_a_guest_that_finishes_leaves_its_qemu_until_the_stop(short_dir: Path) -> None:
    vm = row("aaaaaaa2")
    image = tiny_image(short_dir / "image", tiny_kernels.halting())
    async with lone_fleet(short_dir) as fleet:
        process = await fleet.launch(vm, order(image))
        finishing = asyncio.create_task(fleet.finish(vm, 600.0, never_booted))
        async with asyncio.timeout(30):
            while fleet.view(vm.id).teardown is not Teardown.ASKED:
                await asyncio.sleep(0.01)
            monitor = fleet._drivers[vm.id]._vm.monitor  # type: ignore[union-attr]
            await monitor.execute("system_reset")  # with -no-reboot the guest is down
            await finishing
        view = fleet.view(vm.id)
        assert (view.phase, view.teardown) == (VmPhase.STOPPING, Teardown.GUEST_DOWN)
        assert identify(process.pid) == process
        await fleet.stop(vm, grace_s=0)
        assert fleet.view(vm.id) == ABSENT


async def test_who_asks_a_guest_no_more_does_not_hold_up_its_stop(short_dir: Path) -> None:
    vm = row("aaaaaaa2")
    image = tiny_image(short_dir / "image", tiny_kernels.halting())
    async with lone_fleet(short_dir) as fleet:
        await fleet.launch(vm, order(image))
        finishing = asyncio.create_task(fleet.finish(vm, 600.0, never_booted))
        async with asyncio.timeout(30):
            while fleet.view(vm.id).teardown is not Teardown.ASKED:
                await asyncio.sleep(0.01)
            finishing.cancel()
            await asyncio.gather(finishing, return_exceptions=True)
            await fleet.stop(vm, grace_s=0)
        assert fleet.view(vm.id) == ABSENT
        assert await fleet.finish(vm, 600.0, never_booted) is Press.NONE, "there is nobody to ask"
