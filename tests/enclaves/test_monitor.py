"""The QMP conversation against servers that hang, lie, babble and leave."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agent.enclaves.monitor import GuestEnd, Monitor, MonitorError
from tests.fakes.qmp_server import NEVER, QmpServer, serving

UUID = "6b1f9f0e-55a4-4a6e-9d1c-0f5d2a7c3e11"


class Heard:
    """What a monitor reported, to be waited for."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[GuestEnd] = asyncio.Queue()

    def __call__(self, end: GuestEnd) -> None:
        self._queue.put_nowait(end)

    async def next(self) -> GuestEnd:
        return await self._queue.get()

    @property
    def nothing(self) -> bool:
        return self._queue.empty()


@asynccontextmanager
async def monitoring(path: Path, heard: Heard | None = None) -> AsyncIterator[Monitor]:
    monitor = Monitor(path, UUID, heard or Heard())
    monitor.start()
    try:
        yield monitor
    finally:
        await monitor.close()


async def until_lost(monitor: Monitor) -> None:
    while monitor.connected:
        await asyncio.sleep(0)


async def test_it_waits_for_a_socket_that_is_not_there_yet(short_dir: Path) -> None:
    path = short_dir / "qmp"
    async with monitoring(path) as monitor:
        with pytest.raises(MonitorError, match="No such file"):
            await monitor.wait_up(0.05)
        async with serving(QmpServer(UUID), path):
            await monitor.wait_up(5)
            assert await monitor.execute("query-status") == {"status": "running", "running": True}


async def test_another_vm_behind_the_socket_is_not_taken_for_ours(short_dir: Path) -> None:
    path = short_dir / "qmp"
    server = QmpServer("00000000-0000-4000-8000-000000000000")
    async with serving(server, path), monitoring(path) as monitor:
        with pytest.raises(MonitorError, match="another VM answers"):
            await monitor.wait_up(0.2)
        with pytest.raises(MonitorError):
            await monitor.execute("quit")
        assert "quit" not in server.commands


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("guest-shutdown", "guest-shutdown"),
        ("guest-reset", "guest-reset"),
        ("guest-panic", "guest-panicked"),
        ("subsystem-reset", "guest-shutdown"),
    ],
)
async def test_the_guests_end_is_heard(short_dir: Path, reason: str, expected: str) -> None:
    path, heard = short_dir / "qmp", Heard()
    async with serving(QmpServer(UUID), path) as server, monitoring(path, heard) as monitor:
        await monitor.wait_up(5)
        server.emit("SHUTDOWN", guest=True, reason=reason)
        assert (await heard.next()).reason == expected


@pytest.mark.parametrize(
    ("event", "action"), [("GUEST_PANICKED", "pause"), ("GUEST_CRASHLOADED", "run")]
)
async def test_a_panic_is_heard(short_dir: Path, event: str, action: str) -> None:
    path, heard = short_dir / "qmp", Heard()
    async with serving(QmpServer(UUID), path) as server, monitoring(path, heard) as monitor:
        await monitor.wait_up(5)
        server.emit(event, action=action)
        assert (await heard.next()).reason == "guest-panicked"


async def test_a_guest_that_cannot_be_run_any_further_is_heard(short_dir: Path) -> None:
    path, heard = short_dir / "qmp", Heard()
    async with serving(QmpServer(UUID), path) as server, monitoring(path, heard) as monitor:
        await monitor.wait_up(5)
        server.answers["query-status"] = {"status": "internal-error", "running": False}
        server.emit("STOP")
        assert (await heard.next()).reason == "qemu-exit"


async def test_what_the_host_did_is_not_the_guests_end(short_dir: Path) -> None:
    path, heard = short_dir / "qmp", Heard()
    async with serving(QmpServer(UUID), path) as server, monitoring(path, heard) as monitor:
        await monitor.wait_up(5)
        server.emit("SHUTDOWN", guest=False, reason="host-qmp-quit")
        server.emit("STOP")
        server.emit("SHUTDOWN", guest=True, reason="guest-reset")
        assert (await heard.next()).reason == "guest-reset"
        assert heard.nothing


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        ("shutdown", "guest-shutdown"),
        ("guest-panicked", "guest-panicked"),
        ("internal-error", "qemu-exit"),
    ],
)
async def test_an_end_that_nobody_saw_is_found_when_connecting(
    short_dir: Path, status: str, reason: str
) -> None:
    path, heard = short_dir / "qmp", Heard()
    server = QmpServer(UUID)
    server.answers["query-status"] = {"status": status, "running": False}
    async with serving(server, path), monitoring(path, heard):
        assert (await heard.next()).reason == reason


async def test_a_lost_connection_is_made_again_and_what_was_missed_is_seen(
    short_dir: Path,
) -> None:
    path, heard = short_dir / "qmp", Heard()
    async with serving(QmpServer(UUID), path) as server, monitoring(path, heard) as monitor:
        await monitor.wait_up(5)
        server.answers["query-status"] = {"status": "shutdown", "running": False}
        server.hang_up()
        assert (await heard.next()).reason == "guest-shutdown"
        await monitor.wait_up(5)
        assert server.connections == 2


async def test_a_command_without_an_answer_ends_at_its_deadline_and_the_line_is_cut(
    short_dir: Path,
) -> None:
    path = short_dir / "qmp"
    async with serving(QmpServer(UUID), path) as server, monitoring(path) as monitor:
        await monitor.wait_up(5)
        server.answers["stop"] = NEVER
        with pytest.raises(MonitorError, match=r"stop: no answer within 0\.1 s"):
            await monitor.execute("stop", deadline_s=0.1)
        await until_lost(monitor)
        await monitor.wait_up(5)
        assert await monitor.execute("query-uuid") == {"UUID": UUID}


async def test_others_commands_are_answered_while_one_hangs(short_dir: Path) -> None:
    path = short_dir / "qmp"
    async with serving(QmpServer(UUID), path) as server, monitoring(path) as monitor:
        await monitor.wait_up(5)
        server.answers["stop"] = NEVER
        hanging = asyncio.create_task(monitor.execute("stop"))
        assert await monitor.execute("query-uuid") == {"UUID": UUID}
        server.hang_up()
        with pytest.raises(MonitorError):
            await hanging


@pytest.mark.parametrize(
    "greeting",
    [
        None,
        b"",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"{}\n",
        b'{"QMP": 7}\n',
        b"[" * 100_000 + b"\n",
        b"\xff\xfe\x00\n",
    ],
    ids=["silence", "nothing", "another protocol", "empty", "wrong type", "deep", "no text"],
)
async def test_a_server_that_is_no_qmp_server_is_told_and_closing_does_not_hang(
    short_dir: Path, greeting: bytes | None
) -> None:
    path = short_dir / "qmp"
    server = QmpServer(UUID)
    server.greeting = greeting
    async with serving(server, path), monitoring(path) as monitor:
        with pytest.raises(MonitorError, match="no QMP within"):
            await monitor.wait_up(0.2)
        assert not monitor.connected


@pytest.mark.parametrize(
    "garbage",
    [b"garbage\n", b"[]\n", b'{"return": {}}\n', b'{"error": {"class": "x"}}\n', b"\n", b"null\n"],
)
async def test_garbage_for_an_answer_is_an_error_and_not_the_end(
    short_dir: Path, garbage: bytes
) -> None:
    path = short_dir / "qmp"
    async with serving(QmpServer(UUID), path) as server, monitoring(path) as monitor:
        await monitor.wait_up(5)
        server.raw["stop"] = garbage
        with pytest.raises(MonitorError):
            await monitor.execute("stop", deadline_s=0.2)
        await until_lost(monitor)
        await monitor.wait_up(5)
        assert await monitor.execute("query-uuid") == {"UUID": UUID}


async def test_a_refused_command_keeps_the_connection(short_dir: Path) -> None:
    path = short_dir / "qmp"
    server = QmpServer(UUID)
    server.answers["eject"] = {"error": {"class": "GenericError", "desc": "no such device"}}
    async with serving(server, path), monitoring(path) as monitor:
        await monitor.wait_up(5)
        with pytest.raises(MonitorError, match="eject: no such device"):
            await monitor.execute("eject")
        assert monitor.connected


async def test_the_ring_is_read_byte_for_byte(short_dir: Path) -> None:
    path = short_dir / "qmp"
    every_byte = bytes(range(256))
    server = QmpServer(UUID)
    server.answers["ringbuf-read"] = base64.b64encode(every_byte).decode()
    async with serving(server, path), monitoring(path) as monitor:
        await monitor.wait_up(5)
        assert await monitor.read_ring("console", 4096) == every_byte


@pytest.mark.parametrize("answer", ["not base64!", 7, None, {"data": ""}])
async def test_a_ring_that_is_no_base64_is_told(short_dir: Path, answer: object) -> None:
    path = short_dir / "qmp"
    server = QmpServer(UUID)
    server.answers["ringbuf-read"] = answer
    async with serving(server, path), monitoring(path) as monitor:
        await monitor.wait_up(5)
        with pytest.raises(MonitorError, match="not base64"):
            await monitor.read_ring("console", 4096)


async def test_events_are_not_piled_up(short_dir: Path) -> None:
    """A guest can cause events for as long as it lives."""
    path, heard = short_dir / "qmp", Heard()
    async with serving(QmpServer(UUID), path) as server, monitoring(path, heard) as monitor:
        await monitor.wait_up(5)
        for offset in range(1000):
            server.emit("RTC_CHANGE", offset=offset)
        server.emit("SHUTDOWN", guest=True, reason="guest-shutdown")
        await heard.next()
        client = monitor._client
        assert client is not None
        assert client.events.empty()
        assert client.events.history == ()


async def test_closing_while_dialling_does_not_hang(short_dir: Path) -> None:
    path = short_dir / "qmp"
    server = QmpServer(UUID)
    server.answers["qmp_capabilities"] = NEVER
    async with serving(server, path), monitoring(path):
        while "qmp_capabilities" not in server.commands:
            await asyncio.sleep(0)
