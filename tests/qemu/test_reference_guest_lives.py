"""The reference guest, launched, served by, lost and ended through a fleet of real VMs."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.enclaves.fleet import Fleet
from agent.enclaves.port import ABSENT, ServesBooted, VmPhase
from agent.host.contact import client_context
from agent.model.enclave import Enclave
from agent.model.power_button import Press
from agent.probes.booted import serves_booted
from simulator.rows import revision
from tests.fakes.doomed_agent import launch_and_die
from tests.fakes.vms import (
    DOMAIN,
    INBOUND_PORT,
    deaf_image,
    get_json,
    lone_fleet,
    order,
    processes_of,
    reference_image,
    row,
    until,
    until_printed,
)

pytestmark = [pytest.mark.qemu, pytest.mark.slow]


async def test_it_boots_and_serves_without_an_agent_and_powers_off_when_the_next_one_asks(
    short_dir: Path,
) -> None:
    vm = row("guestaa2", memory_mib=256)
    wanted = order(reference_image(), variables={"REGION": "north"}, secret="correct-horse")
    launch_and_die(short_dir, vm, wanted, "started")
    async with lone_fleet(short_dir, adopting=False) as fleet:
        answer = await first_answer(fleet, vm)
        assert (answer["version"], answer["id"]) == ("v1.1.0", vm.id)
        assert answer["env"] == {"REGION": "north", "DOMAIN": DOMAIN}
        assert answer["secrets"] == {"API_KEY": hashlib.sha256(b"correct-horse").hexdigest()}

        await fleet.adopt([vm])
        assert fleet.view(vm.id).phase is VmPhase.RUNNING
        assert await fleet.stop(vm, 30, booted(fleet, vm)) is Press.HEARD
        assert fleet.view(vm.id) == ABSENT
        assert processes_of(vm.launch_uuid) == []
        console = fleet.console_tail(vm.id, 1 << 20)
        assert b"boot complete" in console
        assert b"powering off: power button" in console
        assert b"correct-horse" not in console


def booted(fleet: Fleet, vm: Enclave) -> ServesBooted:
    """As the agent asks a guest that it is about to stop."""
    endpoint = fleet.endpoint(vm, revision(inbound_ports=(INBOUND_PORT,)), 443)
    return lambda: serves_booted(endpoint, client_context(), 5)


async def first_answer(fleet: Fleet, vm: Enclave) -> Any:
    """The first answer of the workload; the test's own timeout ends the waiting."""
    while True:
        with contextlib.suppress(OSError, TimeoutError, ValueError):  # its shim may say text
            async with asyncio.timeout(2):
                answer = await get_json(fleet, vm, "/")
                if "error" not in answer:
                    return answer
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("hang", [{}, {"GUEST_PANIC_HANG": "1"}], ids=["resets", "hangs"])
async def test_its_panic_is_seen_with_its_last_words(
    short_dir: Path, hang: dict[str, str]
) -> None:
    """Told by its kernel, through pvpanic: also of one that would hang in its panic for ever."""
    vm = row("guestaa2", memory_mib=256)
    wanted = order(reference_image(), variables={"GUEST_PANIC_AFTER_S": "0.5", **hang})
    async with lone_fleet(short_dir) as fleet:
        await fleet.launch(vm, wanted)
        view = await until(fleet, vm.id, lambda view: view.phase is VmPhase.EXITED)
        assert view.exit_reason == "guest-panicked"
        assert b"kernel panic now, as told" in fleet.console_tail(vm.id)


async def test_an_old_image_is_deaf_to_the_power_button_and_is_ended_with_its_last_words_kept(
    short_dir: Path, tmp_path: Path
) -> None:
    vm = row("guestaa2", memory_mib=256)
    async with lone_fleet(short_dir) as fleet:
        await fleet.launch(vm, order(deaf_image(tmp_path)))
        await until_printed(fleet, vm.id, b"boot complete")
        assert await fleet.stop(vm, 3, booted(fleet, vm)) is Press.IGNORED
        assert processes_of(vm.launch_uuid) == []
        assert b"power button pressed, ignored as told" in fleet.console_tail(vm.id)


async def test_a_debug_release_prints_on_hvc0_beside_the_serial_line(short_dir: Path) -> None:
    vm, image = row("guestaa2", memory_mib=256), reference_image()
    cmdline = f"{image.release.cmdline} tinfoil-debug=on console=hvc0"
    release = msgspec.structs.replace(image.release, debug=True, cmdline=cmdline)
    async with lone_fleet(short_dir) as fleet:
        await fleet.launch(vm, order(msgspec.structs.replace(image, release=release)))
        await until_printed(fleet, vm.id, b"device-mapper: verity: ")  # the kernel, on hvc0
        await until_printed(fleet, vm.id, b"boot complete")  # on the serial line


async def test_one_that_floods_its_console_is_not_stalled_and_leaves_little(
    short_dir: Path,
) -> None:
    vm = row("guestaa2", memory_mib=256)
    # All of it with GUEST_CONSOLE_MIB=1024, which takes minutes under emulation.
    mebibytes = os.environ.get("GUEST_CONSOLE_MIB", "24")
    wanted = order(reference_image(), variables={"GUEST_CONSOLE_MIB": mebibytes})
    async with lone_fleet(short_dir) as fleet:
        await fleet.launch(vm, wanted)
        await until_printed(fleet, vm.id, b"flood: ")
        assert (await first_answer(fleet, vm))["id"] == vm.id
        await until_printed(fleet, vm.id, f"printed {mebibytes} MiB".encode())
        log = short_dir / "state" / "consoles" / vm.id
        assert sum(path.stat().st_size for path in log.iterdir()) <= 8 << 20
