"""Network namespaces for tests: the test process's own, and others joined to it by veth pairs.

What a test does to links, routes, rulesets and sysctls is gone with its namespaces.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)
_SERVER = Path(__file__).with_name("guest_server.py")


@contextlib.contextmanager
def own_host() -> Iterator[None]:
    """Put this thread, and what it starts, into a fresh network namespace with `lo` up."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    if _libc.unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
    try:
        ip("link set lo up")
        yield
    finally:
        if _libc.setns(before, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
        os.close(before)


def ip(arguments: str, pid: int | None = None) -> str:
    """Run `ip`, in the namespace of a process if one is given."""
    inside = ["nsenter", "-t", str(pid), "-n"] if pid is not None else []
    argv = [*inside, "ip", *arguments.split()]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def add_ipv6(address: str, link: str, pid: int | None = None) -> None:
    """Give a link an IPv6 address (ADDRESS/LENGTH), and wait until the kernel has its route.

    It makes that of a queue (net/ipv6/addrconf.c, addrconf_dad_work), soon after `ip` has ended.
    """
    ip(f"addr add {address} dev {link} nodad", pid)
    until = time.monotonic() + 30
    while f"local {address.partition('/')[0]} " not in ip("-6 route show table local", pid):
        assert time.monotonic() < until, f"{address} does not come"
        time.sleep(0.01)


class Server:
    """A guest server process; `pid` names its namespace."""

    def __init__(self, name: str, address: str, ports: Sequence[int], *, netns: bool) -> None:
        argv = [sys.executable, str(_SERVER), name, address]
        argv += ["netns"] if netns else []
        self._process = subprocess.Popen(
            [*argv, *map(str, ports)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = self._process.pid
        self.address = address
        self._expect("here")

    def listen(self) -> None:
        """Wait until it serves; it is given its interface before."""
        assert self._process.stdin is not None
        if not self._process.stdin.closed:
            self._process.stdin.write("go\n")
            self._process.stdin.close()
        self._expect("ready")

    def stop(self) -> None:
        self._process.kill()
        with self._process:
            pass

    def _expect(self, word: str) -> None:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line == word + "\n", line


def join(pid: int, *, link: str, address: str, gateway: str) -> None:
    """Give a namespace an `eth0` with ADDRESS/PREFIX, whose other end is `link` here."""
    ip(f"link add {link} type veth peer name eth0 netns {pid}")
    ip(f"link set {link} up")
    ip("link set lo up", pid)
    ip(f"addr add {address} dev eth0", pid)
    ip("link set eth0 up", pid)
    ip(f"route add default via {gateway}", pid)
