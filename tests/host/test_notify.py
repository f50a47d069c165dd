"""What the init system hears."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.host.notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def listener(
    request: pytest.FixtureRequest, short_dir: Path
) -> Iterator[tuple[socket.socket, str]]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.settimeout(5)
        if request.param == "path":
            name = str(short_dir / "notify")
            receiver.bind(name)
        else:
            name = "@ea-test-" + secrets.token_hex(8)
            receiver.bind(b"\0" + name[1:].encode())
        yield receiver, name


def test_each_message_is_one_datagram(listener: tuple[socket.socket, str]):
    receiver, name = listener
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": name}, os.getpid())
    assert notifier.status("adopting 2 enclaves")
    assert receiver.recv(1000) == b"STATUS=adopting 2 enclaves"
    assert notifier.ready("2 enclaves")
    assert receiver.recv(1000) == b"READY=1\nSTATUS=2 enclaves"
    assert notifier.watchdog()
    assert receiver.recv(1000) == b"WATCHDOG=1"
    assert notifier.stopping("bye")
    assert receiver.recv(1000) == b"STOPPING=1\nSTATUS=bye"


def test_a_status_is_one_line(listener: tuple[socket.socket, str]):
    receiver, name = listener
    Notifier(name).status("two\nREADY=1")
    assert receiver.recv(1000) == b"STATUS=two READY=1"


def test_without_an_init_system_nothing_happens():
    for environ in ({}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1"}):
        assert not Notifier.from_environment(environ, 1).ready("x")


def test_nobody_listening_is_no_error(short_dir: Path):
    assert not Notifier(str(short_dir / "absent")).ready("x")
    assert not Notifier("/" + "x" * 200).ready("x")


def test_a_full_queue_does_not_stop_us(short_dir: Path):
    name = str(short_dir / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(name)
        sent = [Notifier(name).status("x") for _ in range(2000)]
    assert sent[0]
    assert not sent[-1]


@pytest.mark.parametrize(
    ("environ", "interval_s"),
    [
        ({"WATCHDOG_USEC": "20000000", "WATCHDOG_PID": "7"}, 10),
        ({"WATCHDOG_USEC": "20000000"}, 10),
        ({"WATCHDOG_USEC": "20000000", "WATCHDOG_PID": "8"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "often"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_wants_a_sign_at_half_its_time(
    environ: dict[str, str], interval_s: float | None
):
    assert Notifier.from_environment(environ, 7).watchdog_interval_s == interval_s
