"""Whose listening sockets are, on this very machine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

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


def process_in(proc: Path, pid: int, name: str, started: int, inode: int) -> None:
    """As proc(5) has it: field 22 of `stat` is when it started, in ticks since the boot."""
    (proc / str(pid) / "fd").mkdir(parents=True)
    (proc / str(pid) / "comm").write_text(f"{name}\n")
    before = f"{pid} ({name}) S 1 {pid} {pid} 0 -1 4194560" + " 0" * 12
    (proc / str(pid) / "stat").write_text(f"{before} {started}" + " 0" * 30 + "\n")
    (proc / str(pid) / "fd/3").symlink_to(f"socket:[{inode}]")


@pytest.mark.parametrize(
    ("init", "program"), [((800, 100), (900, 200)), ((32109, 100), (808, 200)), ((7, 5), (8, 5))]
)
def test_of_several_the_one_that_started_last_is_named_whatever_its_pid(
    tmp_path: Path, init: tuple[int, int], program: tuple[int, int]
) -> None:
    """Pids begin anew once the greatest was given: a child's may be smaller than its parent's."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        inode = os.fstat(server.fileno()).st_ino
        process_in(tmp_path, init[0], "in (i) t", init[1], inode)
        process_in(tmp_path, program[0], "program", program[1], inode)
        (tmp_path / "999999").mkdir()  # it ended as we look
        listen = Listen(address="127.0.0.1", port=server.getsockname()[1])
        assert ListenerOwners(tmp_path).read()[listen] == f"program (process {program[0]})"


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
