"""The life of an enclave, with real QEMUs and kernels of a few bytes."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from pathlib import Path

import msgspec
import pytest

from agent.enclaves import console
from agent.enclaves.host_ports import FIRST_HOST_PORT
from agent.enclaves.network_user import UserNetwork
from agent.enclaves.port import ABSENT, EnclaveError, VmPhase
from agent.host.listener_owners import listener_at
from agent.host.process import argv_of
from agent.model.power_button import Press
from agent.model.release import Artifact
from agent.model.resources import Listen
from tests.fakes import tiny_kernels
from tests.fakes.vms import (
    QEMU,
    SUBNET,
    lone_fleet,
    new_fleet,
    order,
    processes_of,
    row,
    running_fleet,
    tiny_image,
    until,
    until_printed,
)

pytestmark = pytest.mark.qemu


async def test_a_launched_vm_runs_until_it_is_stopped_and_leaves_only_its_console(
    short_dir: Path,
) -> None:
    vm = row("aaaaaaa2")
    image = tiny_image(short_dir / "image", tiny_kernels.halting("hello\n"))
    async with lone_fleet(short_dir) as fleet:
        identity = await fleet.launch(vm, order(image))
        view = fleet.view(vm.id)
        assert (view.phase, view.process) == (VmPhase.RUNNING, identity)
        assert view.launch_uuid == vm.launch_uuid
        assert processes_of(vm.launch_uuid) == [identity.pid]
        await until_printed(fleet, vm.id, b"hello")

        await fleet.stop(vm, grace_s=0)
        assert fleet.view(vm.id) == ABSENT
        assert processes_of(vm.launch_uuid) == []
        assert list((short_dir / "run").iterdir()) == []
        assert b"hello" in fleet.console_tail(vm.id)
        fleet.forget(vm.id)
        assert fleet.console_tail(vm.id) == b""
        await fleet.stop(vm, grace_s=0)


async def test_a_vm_whose_port_a_program_has_is_reached_at_another_also_by_a_later_agent(
    short_dir: Path,
) -> None:
    vm, sent = row("aaaaaaa2"), order(tiny_image(short_dir / "image", tiny_kernels.halting()))

    def network() -> UserNetwork:
        return UserNetwork(SUBNET, short_dir / "ports.json")

    with socket.create_server(("0.0.0.0", FIRST_HOST_PORT)):
        async with lone_fleet(short_dir, network=network()) as fleet:
            identity = await fleet.launch(vm, sent)
            chosen = fleet.endpoint(vm, sent.revision, 443)
            listening = Listen(address=chosen.address, port=chosen.port)
            assert f"(process {identity.pid})" in (listener_at(listening) or "")
            later = new_fleet(short_dir, network=network())
            assert later.endpoint(vm, sent.revision, 443) == chosen


async def test_a_launch_repeated_is_the_same_vm(short_dir: Path) -> None:
    vm = row("aaaaaaa2")
    image = tiny_image(short_dir / "image", tiny_kernels.halting())
    async with lone_fleet(short_dir) as fleet:
        first, second = await asyncio.gather(
            fleet.launch(vm, order(image)), fleet.launch(vm, order(image))
        )
        assert first == second
        assert processes_of(vm.launch_uuid) == [first.pid]


async def test_another_launch_of_a_running_enclave_is_refused(short_dir: Path) -> None:
    vm, again = row("aaaaaaa2"), row("aaaaaaa2")
    image = tiny_image(short_dir / "image", tiny_kernels.halting())
    async with lone_fleet(short_dir) as fleet:
        await fleet.launch(vm, order(image))
        with pytest.raises(EnclaveError, match="stop it first") as refused:
            await fleet.launch(again, order(image))
        assert refused.value.code == "enclave_occupied"
        assert processes_of(again.launch_uuid) == []
        assert fleet.view(vm.id).phase is VmPhase.RUNNING


async def test_no_secret_and_nothing_of_the_environment_is_seen_in_the_process(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENCLAVE_AGENT_TEST", "horse-of-the-environment")
    vm = row("aaaaaaa2")
    image = tiny_image(short_dir / "image", tiny_kernels.halting())
    async with lone_fleet(short_dir) as fleet:
        identity = await fleet.launch(vm, order(image, secret="correct-horse"))
        process = Path("/proc") / str(identity.pid)
        told = b"\0".join(argv_of(identity.pid)) + (process / "environ").read_bytes()
        assert b"horse" not in told
        on_disk = [path for path in short_dir.rglob("*") if path.is_file()]
        assert not [path for path in on_disk if b"correct-horse" in path.read_bytes()]


async def test_a_vm_depends_on_nothing_of_the_agent(short_dir: Path) -> None:
    vm = row("aaaaaaa2")
    image = tiny_image(short_dir / "image", tiny_kernels.halting())
    async with lone_fleet(short_dir) as fleet:
        identity = await fleet.launch(vm, order(image))
        assert os.getsid(identity.pid) == identity.pid
        process = Path("/proc") / str(identity.pid)
        assert "Max core file size        0 " in (process / "limits").read_text()
        links = [str(link.readlink()) for link in (process / "fd").iterdir()]
        assert not [link for link in links if link.startswith("pipe:")]
        assert (process / "fd" / "0").readlink() == Path("/dev/null")
        files = {f"{short_dir}/image/{name}" for name in ("kernel", "initrd", "root")}
        files |= {f"{short_dir}/run/{vm.id}/{name}" for name in ("lock", "output")}
        assert {link for link in links if link.startswith(str(short_dir))} == files


@pytest.mark.parametrize(
    ("kernel", "reason"),
    [
        (tiny_kernels.powering_off("last words\n"), "guest-shutdown"),
        (tiny_kernels.resetting("last words\n"), "guest-reset"),
    ],
    ids=["power off", "reset"],
)
async def test_a_guest_that_ends_is_seen_with_its_console_and_then_cleaned(
    short_dir: Path, kernel: bytes, reason: str
) -> None:
    vm = row("aaaaaaa2")
    async with lone_fleet(short_dir) as fleet:
        identity = await fleet.launch(vm, order(tiny_image(short_dir / "image", kernel)))
        view = await until(fleet, vm.id, lambda view: view.phase is VmPhase.EXITED)
        assert (view.exit_reason, view.process) == (reason, identity)
        assert b"last words" in fleet.console_tail(vm.id)
        assert processes_of(vm.launch_uuid) == [identity.pid]
        await fleet.stop(vm, grace_s=5)
        assert fleet.view(vm.id) == ABSENT
        assert processes_of(vm.launch_uuid) == []


async def test_a_qemu_that_is_killed_is_seen_and_can_be_launched_anew(short_dir: Path) -> None:
    vm, again = row("aaaaaaa2"), row("aaaaaaa2")
    image = tiny_image(short_dir / "image", tiny_kernels.halting())
    async with lone_fleet(short_dir) as fleet:
        identity = await fleet.launch(vm, order(image))
        os.kill(identity.pid, signal.SIGKILL)
        view = await until(fleet, vm.id, lambda view: view.phase is VmPhase.EXITED)
        assert (view.exit_reason, view.exit_detail) == (
            "qemu-exit",
            "QEMU ended (killed by SIGKILL)",
        )
        relaunched = await fleet.launch(again, order(image))
        assert relaunched != identity
        assert fleet.view(vm.id).launch_uuid == again.launch_uuid


async def test_a_guest_that_ignores_the_power_button_is_ended_after_its_grace(
    short_dir: Path,
) -> None:
    vm = row("aaaaaaa2")
    image = tiny_image(short_dir / "image", tiny_kernels.halting("deaf\n"))
    async with lone_fleet(short_dir) as fleet:
        await fleet.launch(vm, order(image))
        await until_printed(fleet, vm.id, b"deaf")
        begin = time.monotonic()
        await fleet.stop(vm, grace_s=1)
        assert 1 <= time.monotonic() - begin < 20
        assert processes_of(vm.launch_uuid) == []


async def test_only_a_guest_that_is_booted_before_and_after_has_ignored_the_press(
    short_dir: Path,
) -> None:
    """One that boots does not hear yet, one that hangs or is about to end shows nothing booted."""
    cases = [
        (3, (True, True), Press.IGNORED),
        (3, (False, True), Press.UNCLEAR),
        (3, (True, False), Press.UNCLEAR),
        (1, (True, True), Press.UNCLEAR),  # too short a grace to tell
        (0, (True, True), Press.NONE),
    ]
    image = tiny_image(short_dir / "image", tiny_kernels.halting())
    async with lone_fleet(short_dir) as fleet:

        async def press(place: int) -> Press:
            grace_s, answers, _ = cases[place]
            vm, told = row(f"aaaaaaa{place + 2}", place + 1), iter(answers)
            await fleet.launch(vm, order(image))

            async def serves_booted() -> bool:
                return next(told)

            return await fleet.stop(vm, grace_s, serves_booted)

        found = await asyncio.gather(*map(press, range(len(cases))))
    assert found == [expected for *_, expected in cases]


async def test_a_qemu_that_hangs_is_killed(short_dir: Path) -> None:
    vm = row("aaaaaaa2")
    image = tiny_image(short_dir / "image", tiny_kernels.halting())
    async with lone_fleet(short_dir) as fleet:
        identity = await fleet.launch(vm, order(image))
        os.kill(identity.pid, signal.SIGSTOP)
        await fleet.stop(vm, grace_s=0)
        assert fleet.view(vm.id) == ABSENT
        assert processes_of(vm.launch_uuid) == []


async def test_a_kernel_that_is_not_the_releases_is_refused_before_anything_starts(
    short_dir: Path,
) -> None:
    vm = row("aaaaaaa2")
    image = tiny_image(short_dir / "image", tiny_kernels.halting())
    other = Artifact(name="kernel", sha256="a" * 64)
    release = msgspec.structs.replace(image.release, kernel=other)
    async with lone_fleet(short_dir) as fleet:
        with pytest.raises(EnclaveError, match="aaaa") as refused:
            await fleet.launch(vm, order(msgspec.structs.replace(image, release=release)))
        assert refused.value.code == "artifact_mismatch"
        assert fleet.view(vm.id) == ABSENT
        assert list((short_dir / "run").iterdir()) == []


async def test_a_qemu_that_fails_at_once_is_told_with_its_own_words(short_dir: Path) -> None:
    vm = row("aaaaaaa2")
    image = tiny_image(short_dir / "image", tiny_kernels.halting())
    broken = short_dir / "broken-qemu"
    broken.write_text(f'#!/bin/sh\nexec {QEMU} -no-such-option "$@"\n')
    broken.chmod(0o755)
    async with lone_fleet(short_dir, binary=str(broken)) as fleet:
        with pytest.raises(EnclaveError, match="no-such-option: invalid option") as failed:
            await fleet.launch(vm, order(image))
        assert failed.value.code == "qemu_exited"
        assert "exit status 1" in str(failed.value)
        assert fleet.view(vm.id) == ABSENT
        assert list((short_dir / "run").iterdir()) == []


async def test_a_missing_qemu_is_told(short_dir: Path) -> None:
    image = tiny_image(short_dir / "image", tiny_kernels.halting())
    async with lone_fleet(short_dir, binary="/nowhere/qemu") as fleet:
        with pytest.raises(EnclaveError, match="/nowhere/qemu") as failed:
            await fleet.launch(row("aaaaaaa2"), order(image))
        assert failed.value.code == "qemu_not_started"
        assert list((short_dir / "run").iterdir()) == []


async def test_a_missing_artifact_is_told(short_dir: Path) -> None:
    image = tiny_image(short_dir / "image", tiny_kernels.halting())
    image.files.root_disk.unlink()
    async with lone_fleet(short_dir) as fleet:
        with pytest.raises(EnclaveError, match="root: No such file"):
            await fleet.launch(row("aaaaaaa2"), order(image))
        assert list((short_dir / "run").iterdir()) == []


async def test_a_launch_that_is_revoked_at_any_moment_leaves_nothing(short_dir: Path) -> None:
    image = tiny_image(short_dir / "image", tiny_kernels.halting())
    async with lone_fleet(short_dir) as fleet:
        ended, patience_s = False, 0.0
        while not ended:
            vm = row("aaaaaaa2")
            launching = asyncio.create_task(fleet.launch(vm, order(image)))
            await asyncio.wait((launching,), timeout=patience_s)
            ended = launching.done()
            launching.cancel()
            await asyncio.gather(launching, return_exceptions=True)
            await fleet.stop(vm, grace_s=0)
            assert fleet.view(vm.id) == ABSENT
            assert processes_of(vm.launch_uuid) == []
            assert list((short_dir / "run").iterdir()) == []
            patience_s += 0.007


async def test_a_console_flood_stays_bounded_and_never_stalls_the_guest(short_dir: Path) -> None:
    vm = row("aaaaaaa2")
    image = tiny_image(short_dir / "image", tiny_kernels.flooding())
    async with lone_fleet(short_dir) as fleet:
        identity = await fleet.launch(vm, order(image))
        consoles = short_dir / "state" / "consoles" / vm.id
        while len(list(consoles.glob("*"))) < 2:  # a first segment of 4 MiB was filled
            await asyncio.sleep(0.05)
        assert sum(path.stat().st_size for path in consoles.iterdir()) <= 8 << 20
        assert fleet.view(vm.id).process == identity
        await fleet.stop(vm, grace_s=0)
        assert len(fleet.console_tail(vm.id, 16 << 20)) <= 8 << 20


async def test_who_reads_a_console_need_not_wait_for_the_next_look_at_it(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "BUSY_S", 1000)
    monkeypatch.setattr(console, "IDLE_S", 1000)
    vm = row("aaaaaaa2")
    image = tiny_image(short_dir / "image", tiny_kernels.halting("hello\n"))
    async with lone_fleet(short_dir) as fleet:
        await fleet.launch(vm, order(image))
        async with asyncio.timeout(60):
            while b"hello" not in fleet.console_tail(vm.id):
                await asyncio.sleep(0.05)
                await fleet.drain_console(vm.id)
        await fleet.stop(vm, grace_s=0)
        await fleet.drain_console(vm.id)  # there is nothing to be had any more


async def test_letting_go_and_adopting_again_changes_nothing_for_the_vm(short_dir: Path) -> None:
    vm = row("aaaaaaa2")
    image = tiny_image(short_dir / "image", tiny_kernels.halting())
    async with running_fleet(short_dir) as fleet:
        identity = await fleet.launch(vm, order(image))
        running = fleet.view(vm.id)
    async with lone_fleet(short_dir, rows=(vm,)) as fleet:
        assert fleet.view(vm.id) == running
        assert await fleet.launch(vm, order(image)) == identity
