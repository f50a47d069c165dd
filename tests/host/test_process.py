"""Processes beyond doubt: the right one is watched and signalled, or none."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from agent.host import process
from agent.host.process import Process, argv_of, boot_id, find_by_option, identify, is_ending
from agent.model.enclave import ProcessIdentity


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


def identity_of(child: subprocess.Popen[bytes]) -> ProcessIdentity:
    return identity_of_pid(child.pid)


def identity_of_pid(pid: int) -> ProcessIdentity:
    identity = identify(pid)
    assert identity is not None
    return identity


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def test_the_identity_of_a_process_stays_the_same(child: subprocess.Popen[bytes]):
    identity = identity_of(child)
    assert identity == identify(child.pid)
    assert (identity.pid, identity.boot_id) == (child.pid, boot_id())
    end(child)
    assert identify(child.pid) is None


def test_a_name_with_brackets_and_spaces_does_not_confuse(tmp_path: Path):
    program = tmp_path / "x) R 1 (y"
    shutil.copy("/bin/sleep", program)
    with subprocess.Popen([program, "600"]) as process:
        clock_ticks = os.sysconf("SC_CLK_TCK")
        own_age = identify(os.getpid())
        identity = identity_of(process)
        process.kill()
    assert own_age is not None
    uptime_s = float(Path("/proc/uptime").read_text().split()[0])
    assert own_age.start_ticks <= identity.start_ticks <= uptime_s * clock_ticks + 1


def test_the_right_process_is_held_and_signalled(child: subprocess.Popen[bytes]):
    held = Process.open(identity_of(child))
    assert held is not None
    assert not held.ended
    held.kill(signal.SIGTERM)
    assert child.wait() == -signal.SIGTERM
    assert held.ended
    held.kill()
    held.close()
    held.close()


@pytest.mark.parametrize(
    "change", [{"start_ticks": 1}, {"boot_id": "00000000-0000-0000-0000-000000000000"}]
)
def test_another_process_with_the_same_pid_is_not_held(
    child: subprocess.Popen[bytes], change: dict[str, object]
):
    other = msgspec.structs.replace(identity_of(child), **change)
    assert Process.open(other) is None
    assert child.poll() is None


def test_a_process_that_is_gone_is_not_held(child: subprocess.Popen[bytes]):
    identity = identity_of(child)
    end(child)
    assert Process.open(identity) is None


def test_a_zombie_has_ended(child: subprocess.Popen[bytes]):
    held = Process.open(identity_of(child))
    assert held is not None
    os.kill(child.pid, signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert held.ended
    assert argv_of(child.pid) == []
    assert held.reap() == "killed by SIGKILL"
    assert held.reap() is None
    held.close()


async def test_the_end_of_a_process_that_is_not_our_child_is_seen(tmp_path: Path):
    """The sleeper is its parent's child, and becomes init's when that is gone."""
    told = tmp_path / "pid"
    subprocess.run(["sh", "-c", f"sleep 600 & echo $! >{told}"], check=True)
    pid = int(told.read_text())
    identity = identify(pid)
    assert identity is not None
    held = Process.open(identity)
    assert held is not None
    held.kill()
    await held.wait()
    assert held.ended
    assert held.reap() is None
    held.close()


async def test_waiting_for_what_already_ended_returns(child: subprocess.Popen[bytes]):
    held = Process.open(identity_of(child))
    assert held is not None
    end(child)
    await held.wait()
    held.close()


def test_processes_are_found_by_the_exact_value_of_an_option():
    wanted, similar = str(uuid.uuid4()), str(uuid.uuid4())
    program = "import sys; print(flush=True); sys.stdin.read()"
    lines = [
        ["-uuid", wanted],
        ["-uuid", wanted + "0"],
        ["-name", wanted],
        ["-uuid=" + wanted],
        [wanted, "-uuid"],
        ["-uuid", similar, "-uuid", wanted],
    ]
    processes = []
    try:
        for line in lines:
            argv = [sys.executable, "-c", program, *line]
            process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            processes.append(process)
            assert process.stdout is not None
            process.stdout.readline()
        found = find_by_option("-uuid", [wanted, "absent"])
    finally:
        for process in processes:
            with process:
                process.kill()
    assert found == {wanted: [processes[0].pid, processes[5].pid], "absent": []}
    assert find_by_option("-uuid", []) == {}


def test_a_process_that_was_killed_is_ending_from_then_on_and_no_other_is(
    child: subprocess.Popen[bytes],
):
    identity = identity_of(child)
    assert not is_ending(identity)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert is_ending(identity)  # a zombie
    child.wait()
    assert is_ending(identity)
    own = identity_of_pid(os.getpid())
    assert not is_ending(own)
    assert is_ending(msgspec.structs.replace(own, start_ticks=own.start_ticks - 1))


@pytest.mark.parametrize(
    ("flags", "pending", "ending"),
    [(0x400040, 0, False), (0x400044, 0, True), (0x400040, 1 << 8, True), (0, 1 << 14, False)],
    ids=["it runs", "its memory is being released", "killed, and not awake yet", "SIGTERM waits"],
)
def test_a_process_is_ending_before_its_files_are_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: int, pending: int, ending: bool
):
    """The line is that of Linux 6.1 for a QEMU, by fs/proc/array.c; these moments pass quickly."""
    monkeypatch.setattr(process, "PROC", tmp_path)
    line = f"7 (q) x) D 1 7 7 0 -1 {flags} 9 0 0 0 1 2 0 0 20 0 5 0 4242 1 2 3 0 0 0 0 0 {pending}"
    (tmp_path / "7").mkdir()
    (tmp_path / "7/stat").write_text(f"{line} 0 0 0 0 0 0 17 1 0 0 0 0 0 0 0 0 0 0 0 0 0\n")
    (tmp_path / "sys/kernel/random").mkdir(parents=True)
    (tmp_path / "sys/kernel/random/boot_id").write_text("b\n")
    assert is_ending(ProcessIdentity(pid=7, start_ticks=4242, boot_id="b")) is ending
