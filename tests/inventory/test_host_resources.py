"""What is read of the host, from trees in a directory and from this machine itself."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.inventory.host import HostProbe, InventoryError, resident_mib
from agent.inventory.listeners import read_listeners, read_proc
from agent.model.ids import EnclaveId
from agent.model.resources import Listen

HEADER = "  sl  local_address rem_address   st tx_queue rx_queue\n"


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    root = tmp_path / "proc"
    (root / "net").mkdir(parents=True)
    (root / "meminfo").write_text(
        "MemTotal:       8388608 kB\nMemFree:  1 kB\nMemAvailable:   4194304 kB\n"
    )
    (root / "net/tcp").write_text(HEADER)
    (root / "77").mkdir()
    (root / "77/status").write_text(
        "Name:\tqemu 1\nVmRSS:\t 9000000 kB\nRssAnon:\t  204800 kB\nRssFile:\t  99999 kB\n"
        "RssShmem:\t  102400 kB\n"
    )
    return root


@pytest.fixture
def cgroup(tmp_path: Path) -> Path:
    root = tmp_path / "cgroup"
    root.mkdir()
    return root


def test_memory_is_what_the_kernel_calls_total_and_available(
    proc: Path, cgroup: Path, tmp_path: Path
) -> None:
    seen = HostProbe(tmp_path, proc_root=proc, cgroup_root=cgroup, vcpus=6).read(
        {EnclaveId("aaaaaaaa"): 77, EnclaveId("bbbbbbbb"): 78}
    )
    assert (seen.memory_mib, seen.mem_available_mib, seen.vcpus) == (8192, 4096, 6)
    assert seen.resident_mib == {"aaaaaaaa": 300, "bbbbbbbb": 0}
    assert seen.disk_free_mib > 0


def test_a_containers_limits_are_the_host(proc: Path, cgroup: Path, tmp_path: Path) -> None:
    (cgroup / "memory.max").write_text(f"{2048 << 20}\n")
    (cgroup / "memory.current").write_text(f"{1024 << 20}\n")
    (cgroup / "memory.stat").write_text(f"anon 1\ninactive_file {100 << 20}\n")
    (cgroup / "cpu.max").write_text("150000 100000\n")
    seen = HostProbe(tmp_path, proc_root=proc, cgroup_root=cgroup).read({})
    assert (seen.memory_mib, seen.mem_available_mib, seen.vcpus) == (2048, 1124, 1)


def test_a_container_without_limits_changes_nothing(
    proc: Path, cgroup: Path, tmp_path: Path
) -> None:
    (cgroup / "memory.max").write_text("max\n")
    (cgroup / "cpu.max").write_text("max 100000\n")
    seen = HostProbe(tmp_path, proc_root=proc, cgroup_root=cgroup).read({})
    assert (seen.memory_mib, seen.mem_available_mib) == (8192, 4096)
    assert seen.vcpus == len(os.sched_getaffinity(0))


@pytest.mark.parametrize("text", ["", "MemTotal: none kB\n"])
def test_a_kernel_that_does_not_tell_its_memory_is_an_inventory_error(
    proc: Path, cgroup: Path, tmp_path: Path, text: str
) -> None:
    (proc / "meminfo").write_text(text)
    with pytest.raises(InventoryError):
        HostProbe(tmp_path, proc_root=proc, cgroup_root=cgroup).read({})


def test_touched_memory_is_resident_and_only_that() -> None:
    before = resident_mib(os.getpid())
    block = bytearray(b"x") * (64 << 20)
    assert resident_mib(os.getpid()) >= before + 60
    del block


def test_listening_sockets_of_both_families_are_found_and_others_are_not(proc: Path) -> None:
    (proc / "net/tcp").write_text(
        HEADER
        + "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000\n"
        + "   1: 0100007F:1F90 0200007F:9999 01 00000000:00000000\n"
        + "   2: 00000000:0016 00000000:0000 0A 00000000:00000000\n"
    )
    (proc / "net/tcp6").write_text(
        HEADER
        + "   0: 00000000000000000000000000000000:0016 0:0 0A 0\n"
        + "   1: 00000000000000000000000000000000:01BB 0:0 0A 0\n"
        + "   2: 0000000000000000FFFF00000100007F:0050 0:0 0A 0\n"
        + "   3: B80D0120000000000000000001000000:0051 0:0 0A 0\n"
    )
    assert set(read_listeners(proc)) == {
        Listen(address="127.0.0.1", port=8080),
        Listen(address="0.0.0.0", port=22),
        Listen(address="::", port=22),
        Listen(address="::", port=443),
        Listen(address="0.0.0.0", port=443),
        Listen(address="127.0.0.1", port=80),
        Listen(address="2001:db8::1", port=81),
    }


READERS = pytest.mark.parametrize("read", [read_listeners, read_proc])


@READERS
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_socket_that_listens_on_this_very_machine_is_found(
    read: Callable[[], tuple[Listen, ...]], address: str
) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as server:
        wanted = Listen(address=address, port=server.getsockname()[1])
        assert wanted in read()
    assert wanted not in read()


@READERS
def test_a_listener_on_every_address_of_both_families_is_one_of_ipv4_too(
    read: Callable[[], tuple[Listen, ...]],
) -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        port = server.getsockname()[1]
        found = {listen.address for listen in read() if listen.port == port}
        assert found == {"::", "0.0.0.0"}


def test_a_listener_on_every_address_of_ipv6_alone_leaves_ipv4_free() -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6) as server:
        port = server.getsockname()[1]
        assert {listen.address for listen in read_listeners() if listen.port == port} == {"::"}


def test_connections_are_not_taken_for_listeners_and_many_listeners_are_all_found() -> None:
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(600)]
        ports = {server.getsockname()[1] for server in servers}
        client = stack.enter_context(socket.create_connection(servers[0].getsockname()))
        found = {listen.port for listen in read_listeners()}
        assert ports <= found
        assert client.getsockname()[1] not in found
