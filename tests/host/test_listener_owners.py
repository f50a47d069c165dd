"""Whose listening sockets are, on this very machine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from agent.host import listener_owners
from agent.host.listener_owners import ListenerOwners, listener_at
from agent.model.resources import Listen

ME = f"(process {os.getpid()})"


def test_each_listener_has_its_program_and_process() -> None:
    code = "import socket; s=socket.create_server(('::', 0), family=10, dualstack_ipv6=True)"
    code += "; print(s.getsockname()[1], flush=True); input()"
    with (
        subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as other,
        socket.create_server(("127.0.0.1", 0)) as mine,
    ):
        assert other.stdout is not None
        port = int(other.stdout.readline())
        names = ListenerOwners().read()
        here = Listen(address="127.0.0.1", port=mine.getsockname()[1])
        assert names[here].endswith(ME)
        assert names[Listen(address="::", port=port)].endswith(f"(process {other.pid})")
        assert names[Listen(address="0.0.0.0", port=port)].endswith(f"(process {other.pid})")
        everywhere = Listen(address="0.0.0.0", port=here.port)
        assert listener_at(everywhere) == f"{names[here]}, which listens on {here}"
        other.communicate("")
    assert listener_at(here) is None


def test_a_socket_that_init_gave_to_a_program_is_that_programs() -> None:
    """Both have it open: the one that was started later answers its clients."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        listen = Listen(address="127.0.0.1", port=server.getsockname()[1])
        with subprocess.Popen(
            ["cat"], stdin=subprocess.PIPE, pass_fds=(server.fileno(),)
        ) as child:
            assert ListenerOwners().read()[listen] == f"cat (process {child.pid})"
            child.communicate()


def test_proc_is_walked_only_for_sockets_that_are_new(monkeypatch: pytest.MonkeyPatch) -> None:
    walks: list[int] = []
    walk = listener_owners._owners
    monkeypatch.setattr(listener_owners, "_owners", lambda *args: walks.append(1) or walk(*args))
    owners = ListenerOwners()
    with socket.create_server(("127.0.0.1", 0)) as server:
        for _ in range(3):
            listen = Listen(address="127.0.0.1", port=server.getsockname()[1])
            assert owners.read()[listen].endswith(ME)
    assert len(walks) == 1
    owners.read()
    assert len(walks) == 1
    with socket.create_server(("127.0.0.1", 0)) as server:
        owners.read()
    assert len(walks) == 2
