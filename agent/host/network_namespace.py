"""A network of the agent's own beside the host's, which nothing outlives.

Invariant: the namespace has no name and no process in it; what keeps it is one descriptor of this
process. So the kernel takes it away, with every link in it and the other ends of those, when the
agent ends in whatever way. Nobody's thread but one of its own is ever in it: a socket belongs to
the namespace in which it was created, and is used from anywhere.

Source: network_namespaces(7), setns(2), unshare(2). Needs CAP_SYS_ADMIN: an agent without it has
one of a unit (`lent_namespace.py`).
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable
from typing import Protocol, Self, TypeVar

from agent.host.commands import tool_environment
from agent.host.threads import finish_in_own_thread

T = TypeVar("T")
_CLONE_NEWNET = 0x40000000
_OWN = "/proc/thread-self/ns/net"
_TOOL_S = 10.0


class Namespace(Protocol):
    """A network namespace that is ours, and that ends with us."""

    async def ip(self, *lines: str) -> None:
        """Have a batch of iproute2 done in it. Raises OSError."""
        ...

    async def sockets(self, number: int) -> list[socket.socket]:
        """So many of TCP over IPv4, not blocking, which the caller closes. Raises OSError."""
        ...

    def close(self) -> None:
        """Let go of it; sockets that are open keep it until they are closed. Idempotent."""
        ...


class NetworkNamespace:
    """Implements `Namespace`, with threads of a moment. To be closed."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    async def create(cls) -> Self:
        """An empty one. Raises OSError where that is not allowed."""
        made: list[int] = []

        def work() -> None:
            _call("unshare", _CLONE_NEWNET)
            made.append(os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC))

        try:
            await finish_in_own_thread(work)
        except BaseException:
            for descriptor in made:
                os.close(descriptor)
            raise
        return cls(made[0])

    async def ip(self, *lines: str) -> None:
        await self._inside(lambda: _ip(lines))

    async def _inside(self, work: Callable[[], T]) -> T:
        """The result of short blocking work in it; a program that it starts is in it, too."""
        descriptor = self._descriptor

        def enter_and_work() -> T:
            _call("setns", descriptor, _CLONE_NEWNET)
            return work()

        return await finish_in_own_thread(enter_and_work)

    async def sockets(self, number: int) -> list[socket.socket]:
        made: list[socket.socket] = []

        def work() -> None:
            kind = socket.SOCK_STREAM | socket.SOCK_NONBLOCK
            made.extend(socket.socket(socket.AF_INET, kind) for _ in range(number))

        try:
            await self._inside(work)
        except BaseException:
            for one in made:
                one.close()
            raise
        return made

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _ip(lines: tuple[str, ...]) -> None:
    """In the calling thread's namespace. Raises OSError."""
    try:
        done = subprocess.run(
            ["ip", "-batch", "-"],
            input="".join(f"{line}\n" for line in lines),
            capture_output=True,
            text=True,
            timeout=_TOOL_S,
            env=tool_environment(),
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise OSError("ip does not end") from error
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[0]
        raise OSError(f"ip: {said}")


def _call(name: str, *arguments: int) -> None:
    """A call of the C library's; `os` has these only from Python 3.12 on. Raises OSError."""
    import ctypes  # only where there is to be such a namespace

    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
