from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from agent.host.commands import CommandError, run_command


async def test_a_tool_gets_its_input_and_gives_its_output_and_status() -> None:
    done = await run_command(["sh", "-c", "cat; echo oh no >&2; exit 3"], stdin=b"hello")
    assert (done.status, done.stdout, done.complaint) == (3, b"hello", "oh no")


async def test_a_silent_failure_is_told_by_its_status() -> None:
    assert (await run_command(["false"])).complaint == "exit status 1"


async def test_a_missing_tool_is_named() -> None:
    with pytest.raises(CommandError, match="no-such-tool cannot be run: No such file"):
        await run_command(["no-such-tool"])


async def test_a_tool_that_takes_too_long_is_killed(tmp_path: Path) -> None:
    told = tmp_path / "pid"
    with pytest.raises(CommandError, match="did not end within"):
        await run_command(["sh", "-c", f"echo $$ >{told}; exec sleep 60"], timeout_s=0.3)
    with pytest.raises(ProcessLookupError):
        os.kill(int(told.read_text()), 0)


async def test_a_cancelled_tool_is_killed(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        task = asyncio.create_task(run_command(["sh", "-c", f"echo $$ >{fifo}; exec sleep 60"]))
        started = asyncio.Event()
        asyncio.get_running_loop().add_reader(reader, started.set)
        await started.wait()
        asyncio.get_running_loop().remove_reader(reader)
        pid = int(os.read(reader, 32))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    finally:
        os.close(reader)


async def test_a_big_input_and_a_big_output_pass_at_once() -> None:
    data = os.urandom(3 << 20)
    assert (await run_command(["cat"], stdin=data)).stdout == data


async def test_a_tool_that_does_not_read_its_input_is_judged_by_its_status() -> None:
    assert (await run_command(["true"], stdin=b"x" * (4 << 20))).status == 0


async def test_a_tool_ended_by_a_signal_has_its_negative_number() -> None:
    assert (await run_command(["sh", "-c", "kill -TERM $$"])).status == -15


async def test_a_tool_that_prints_without_end_is_given_up(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="yes printed more than 16777216 bytes"):
        await run_command(["yes"], timeout_s=60)


async def test_complaints_without_end_are_cut() -> None:
    done = await run_command(["sh", "-c", "yes complaint | head -c 1000000 >&2"])
    assert len(done.stderr) == 65536
    assert done.complaint == "complaint"


async def test_what_a_given_up_tool_started_is_killed_too(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with pytest.raises(CommandError, match="did not end within"):
            await run_command(["sh", "-c", f"sleep 60 >{fifo} & wait"], timeout_s=0.3)
        ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(reader, ended.set)
        await ended.wait()  # the pipe's last writer is gone
        asyncio.get_running_loop().remove_reader(reader)
        assert os.read(reader, 1) == b""
    finally:
        os.close(reader)


async def test_a_tool_that_leaves_another_holding_its_output_is_given_up(tmp_path: Path) -> None:
    told = tmp_path / "pid"
    script = f"sleep 60 & echo $! >{told}"
    with pytest.raises(CommandError, match="did not end within"):
        await run_command(["sh", "-c", script], timeout_s=0.3)
    os.kill(int(told.read_text()), 9)


async def test_arguments_reach_the_tool_as_they_are() -> None:
    arguments = ["$(id)", "a b", "*", "; true", "--", "é\n"]
    done = await run_command(["printf", "%s\\0", *arguments])
    assert done.stdout.split(b"\0")[:-1] == [a.encode() for a in arguments]


async def test_a_file_that_may_not_be_run_is_named(tmp_path: Path) -> None:
    (tmp_path / "tool").write_text("#!/bin/sh\n")
    with pytest.raises(CommandError, match="tool cannot be run: Permission denied"):
        await run_command([str(tmp_path / "tool")])


async def test_tools_print_in_the_c_locale_and_cannot_speak_for_us(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/ours")
    lines = (await run_command(["env"])).stdout.decode().splitlines()
    assert "LC_ALL=C" in lines
    assert not [line for line in lines if line.startswith("NOTIFY_SOCKET")]
