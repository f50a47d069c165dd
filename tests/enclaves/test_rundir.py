from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from agent.enclaves.rundir import OUTPUT_KEPT_BYTES, OUTPUT_LIMIT_BYTES, LaunchRecord, RunDir
from agent.host.process import identify
from agent.model.ids import Bdf, EnclaveId


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path, EnclaveId("aaaaaaa2"))
    run.create()
    return run


def test_only_its_owner_sees_into_it(run: RunDir) -> None:
    assert run.path.stat().st_mode & 0o777 == 0o711
    assert run.vm.stat().st_mode & 0o777 == 0o700


def test_the_lock_is_held_once(run: RunDir) -> None:
    assert not run.is_locked()
    lock = run.take_lock()
    assert lock is not None
    assert run.is_locked()
    assert run.take_lock() is None
    os.close(lock)
    assert not run.is_locked()


def test_the_lock_outlives_whoever_took_it_in_whoever_inherited_it(run: RunDir) -> None:
    lock = run.take_lock()
    assert lock is not None
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=(lock,))
    os.close(lock)
    assert run.is_locked()
    assert run.is_held_by(child.pid) is True
    assert run.is_held_by(os.getpid()) is False
    child.communicate()
    assert not run.is_locked()
    assert run.is_held_by(child.pid) is False


def test_nobody_can_be_said_to_hold_a_lock_that_is_not_there(tmp_path: Path) -> None:
    gone = RunDir(tmp_path, EnclaveId("aaaaaaa2"))
    assert not gone.exists
    assert not gone.is_locked()
    assert gone.is_held_by(os.getpid()) is None


def test_a_record_is_read_as_it_was_written(run: RunDir) -> None:
    assert run.record() is None
    for record in (
        LaunchRecord(launch_uuid="u"),
        LaunchRecord(launch_uuid="u", process=identify(os.getpid())),
    ):
        run.write_record(record)
        assert run.record() == record


@pytest.mark.parametrize(
    "garbage",
    [b"", b"{}", b"\0", b'{"launch_uuid": 7}', b'{"launch_uuid":"u","more":1}', b"x" * 9999],
)
def test_a_record_that_makes_no_sense_is_none(run: RunDir, garbage: bytes) -> None:
    (run.path / "launch.json").write_bytes(garbage)
    assert run.record() is None


def test_an_output_that_grew_keeps_its_end_and_is_appended_to(run: RunDir) -> None:
    with run.output.open("ab", buffering=0) as writer:
        writer.write(b"a" * OUTPUT_LIMIT_BYTES)
        run.trim_output()
        assert run.output.stat().st_size == OUTPUT_LIMIT_BYTES
        writer.write(b"b" * 10)
        run.trim_output()
        assert run.output.stat().st_size == OUTPUT_KEPT_BYTES
        writer.write(b"\xffend")
    assert run.output.stat().st_size == OUTPUT_KEPT_BYTES + 4
    assert run.output_tail(14) == "b" * 10 + "\ufffdend"


def test_what_is_not_there_is_empty_and_removed_without_complaint(tmp_path: Path) -> None:
    gone = RunDir(tmp_path, EnclaveId("aaaaaaa2"))
    gone.trim_output()
    gone.remove()
    assert gone.output_tail() == ""
    assert gone.record() is None


def test_what_qemu_says_of_a_descriptor_is_told_of_the_device(tmp_path: Path) -> None:
    run = RunDir(tmp_path, EnclaveId("aaaaaaa2"))
    run.create()
    named = {"VFIO_FD12": Bdf("0000:18:00.0"), "passed2": Bdf("0000:2a:00.0")}
    run.write_record(LaunchRecord(launch_uuid="u", device_fds=named))
    run.output.write_text("vfio VFIO_FD12: it is broken\nvfio passed2: and so is it, VFIO_FD123\n")
    assert run.output_tail() == (
        "vfio 0000:18:00.0: it is broken\nvfio 0000:2a:00.0: and so is it, VFIO_FD123"
    )
