"""The proof that KVM runs guests, with real QEMU and with executables that misbehave."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from agent.config import Accel
from agent.enclaves.accel import AccelProof, Trial
from agent.enclaves.spec import VmAccel
from agent.host.process import argv_of
from tests.fakes.vms import QEMU


def executable(path: Path, script: str) -> str:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def running(binary: str) -> list[int]:
    """Pids of what was started from this executable."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [pid for pid in pids if binary.encode() in argv_of(pid)]


def proof(directory: Path, binary: str, wanted: Accel = Accel.AUTO) -> AccelProof:
    device = directory / "kvm"
    device.touch()
    return AccelProof(
        wanted=wanted,
        binary=binary,
        user=None,
        state_dir=directory,
        run_dir=directory,
        device=device,
    )


@pytest.mark.qemu
@pytest.mark.parametrize("cpu", ["qemu64", "max"])
async def test_the_trial_guest_gets_through_where_guests_run(tmp_path: Path, cpu: str) -> None:
    """Emulation stands for a KVM that works: the very same guest and options."""
    outcome = await Trial(QEMU, "tcg", cpu, tmp_path / "output").run()
    assert outcome.works, outcome.reason
    assert list(tmp_path.iterdir()) == []


@pytest.mark.qemu
async def test_the_real_kvm_is_decided_within_the_bound_and_leaves_nothing(tmp_path: Path) -> None:
    verdict = await AccelProof(
        wanted=Accel.AUTO, binary=QEMU, user=None, state_dir=tmp_path, run_dir=tmp_path
    ).resolve()
    assert verdict.value in (VmAccel.KVM, VmAccel.TCG)
    assert verdict.reason
    assert not (tmp_path / "accel-trial").exists()


async def test_a_trial_that_burns_a_core_is_killed(tmp_path: Path) -> None:
    binary = executable(tmp_path / "qemu", "while :; do :; done")
    outcome = await Trial(binary, "kvm", "host", tmp_path / "output", trial_s=0.2).run()
    assert (outcome.works, outcome.lasting) == (False, True)
    assert "in time" in outcome.reason
    assert running(binary) == []


async def test_a_trial_that_sleeps_is_given_more_time_but_killed_too(tmp_path: Path) -> None:
    binary = executable(tmp_path / "qemu", "exec tail -f /dev/null")
    trial = Trial(binary, "kvm", "host", tmp_path / "output", trial_s=0.05, starved_s=0.2)
    outcome = await trial.run()
    assert not outcome.works
    assert running(binary) == []


@pytest.mark.parametrize("after_s", [0, 0.002, 0.005, 0.02, 0.2])
async def test_a_cancelled_trial_leaves_no_process(tmp_path: Path, after_s: float) -> None:
    """Also when it is cancelled while its process is being started."""
    binary = executable(tmp_path / "qemu", "while :; do :; done")
    trial = asyncio.create_task(Trial(binary, "kvm", "host", tmp_path / "output").run())
    await asyncio.sleep(after_s)
    trial.cancel()
    with pytest.raises(asyncio.CancelledError):
        await trial
    async with asyncio.timeout(5):
        while running(binary):
            await asyncio.sleep(0.01)


async def test_a_qemu_that_aborts_is_told_with_its_words_and_tried_again_next_time(
    tmp_path: Path,
) -> None:
    binary = executable(tmp_path / "qemu", f"echo x >>{tmp_path}/runs; echo no MSR >&2; exit 1")
    verdict = await proof(tmp_path, binary).resolve()
    assert (verdict.value, verdict.usable) == (VmAccel.TCG, True)
    assert "exit status 1; no MSR" in verdict.reason
    await proof(tmp_path, binary).resolve()
    assert (tmp_path / "runs").read_text() == "x\nx\n"


async def test_what_was_proved_is_not_tried_again_for_the_same_qemu_in_this_boot(
    tmp_path: Path,
) -> None:
    script = f"echo x >>{tmp_path}/runs; exit 85"
    binary = executable(tmp_path / "qemu", script)
    for _ in range(3):
        assert (await proof(tmp_path, binary).resolve()).value is VmAccel.KVM
    assert (tmp_path / "runs").read_text() == "x\n"
    executable(tmp_path / "qemu", f"{script} # another one")
    assert (await proof(tmp_path, binary).resolve()).value is VmAccel.KVM
    assert (tmp_path / "runs").read_text() == "x\nx\n"


async def test_a_cache_that_makes_no_sense_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "accel.json").write_bytes(b"\0garbage")
    binary = executable(tmp_path / "qemu", "exit 85")
    assert (await proof(tmp_path, binary).resolve()).value is VmAccel.KVM


async def test_insisting_on_a_kvm_that_does_not_run_is_not_answered_with_emulation(
    tmp_path: Path,
) -> None:
    binary = executable(tmp_path / "qemu", "exit 1")
    verdict = await proof(tmp_path, binary, Accel.KVM).resolve()
    assert (verdict.value, verdict.usable) == (VmAccel.KVM, False)


async def test_asking_for_emulation_tries_nothing(tmp_path: Path) -> None:
    binary = executable(tmp_path / "qemu", f"touch {tmp_path}/ran; exit 85")
    verdict = await proof(tmp_path, binary, Accel.TCG).resolve()
    assert (verdict.value, verdict.reason) == (VmAccel.TCG, "configured")
    assert not (tmp_path / "ran").exists()


async def test_without_a_device_or_a_qemu_nothing_is_tried(tmp_path: Path) -> None:
    binary = executable(tmp_path / "qemu", "exit 85")
    absent = AccelProof(
        wanted=Accel.AUTO,
        binary=binary,
        user=None,
        state_dir=tmp_path,
        run_dir=tmp_path,
        device=tmp_path / "no-kvm",
    )
    assert "does not exist" in (await absent.resolve()).reason
    assert "there is no /nowhere/qemu" in (await proof(tmp_path, "/nowhere/qemu").resolve()).reason
