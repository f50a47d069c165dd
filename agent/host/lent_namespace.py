"""A network namespace that a unit of systemd keeps for an agent that may make none.

Making one, and being in it, takes CAP_SYS_ADMIN. So a unit has one (`PrivateNetwork=`), and a
small program in it (`namespace_keeper.py`) makes links and sockets there and hands them over.
Invariant: program, unit and namespace end when the agent ends in whatever way: the program reads
from a socket of which the agent holds the other end alone.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
from typing import Any, Self

from agent.host import namespace_keeper
from agent.host.commands import tool_environment
from agent.host.threads import finish_in_thread
from agent.host.units import RUN

_PATIENCE_S = 20.0
_PROPERTIES = (
    "PrivateNetwork=yes",
    "CapabilityBoundingSet=CAP_NET_ADMIN",
    "NoNewPrivileges=yes",
    "ProtectSystem=strict",
    "ProtectHome=read-only",
    "ProtectKernelTunables=yes",
    "ProtectKernelModules=yes",
    "PrivateTmp=yes",
    "PrivateDevices=yes",
    "RestrictNamespaces=yes",
    "RestrictAddressFamilies=AF_UNIX AF_INET AF_NETLINK",
    "SystemCallArchitectures=native",
    "LimitCORE=0",
    "MemoryMax=128M",
    "TasksMax=16",
)


class LentNamespace:
    """Implements `agent.host.network_namespace.Namespace`."""

    def __init__(self, keeper: socket.socket) -> None:
        self._keeper = keeper

    @classmethod
    async def create(cls) -> Self:
        """An empty one. Raises OSError where no unit can be had."""
        return cls(await finish_in_thread(_start))

    async def ip(self, *lines: str) -> None:
        await finish_in_thread(self._ask, {"ip": "".join(f"{line}\n" for line in lines)}, [], 0)

    async def sockets(self, number: int) -> list[socket.socket]:
        made: list[socket.socket] = []
        try:
            while len(made) < number:
                some = min(number - len(made), namespace_keeper.MOST_SOCKETS)
                await finish_in_thread(self._ask, {"sockets": some}, made, some)
        except BaseException:
            for one in made:
                one.close()
            raise
        return made

    def close(self) -> None:
        self._keeper.close()

    def _ask(self, asked: dict[str, Any], made: list[socket.socket], number: int) -> None:
        """Adds the sockets that come to `made`. Whoever did not answer in time is let go."""
        try:
            self._keeper.sendall(json.dumps(asked).encode())
            most = namespace_keeper.MOST_SOCKETS
            said, fds, _, _ = socket.recv_fds(self._keeper, namespace_keeper.MAX_BYTES, most)
        except OSError:
            self.close()
            raise
        for fd in fds:
            one = socket.socket(fileno=fd)
            one.setblocking(False)
            made.append(one)
        if said != namespace_keeper.DONE or len(fds) != number:
            raise OSError(said.decode(errors="replace") or "the unit with the network is gone")


def _start() -> socket.socket:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    unit = f"--unit=enclave-agent-outside-{secrets.token_hex(4)}.service"
    words = [*RUN, "--pipe", unit, "--description=Network from which listeners are asked"]
    words += [f"--property={one}" for one in _PROPERTIES]
    program = [sys.executable, "-I", "-S", namespace_keeper.__file__]
    try:
        with theirs:
            asking = subprocess.Popen(
                [*words, "--", *program],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=tool_environment(),
                start_new_session=True,
            )
        try:
            ours.settimeout(_PATIENCE_S)
            if ours.recv(16) != namespace_keeper.HERE:
                asking.kill()
                said = (asking.communicate()[1] or b"").decode(errors="replace").strip()
                raise OSError(f"systemd does not start the unit: {said or os.strerror(5)}")
        finally:
            asking.kill()  # it would wait for the unit's end; the unit does not need it
            asking.wait()
            if asking.stderr is not None:
                asking.stderr.close()
    except BaseException:
        ours.close()
        raise
    return ours
