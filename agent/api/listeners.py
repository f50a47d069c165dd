"""Where the API listens: sockets bound here, or handed over by the service manager.

A unix socket is bound with mode 0660 from its first moment and given to the group `enclave-agent`
if there is one, before anything can connect. What was handed over (LISTEN_FDS, by name: `local`,
`status`, `rpc`) is used instead of binding, so that no connection is refused while the agent is
being replaced.
"""

from __future__ import annotations

import contextlib
import grp
import os
import socket
import stat
from collections.abc import MutableMapping
from dataclasses import dataclass
from pathlib import Path

from agent.api.roles import Role
from agent.errors import AgentError

GROUP = "enclave-agent"
_FIRST_FD = 3
_BACKLOG = 256
_PATH_LIMIT = 107


class ListenError(AgentError):
    """A socket cannot be had. The text names the address."""

    @property
    def code(self) -> str:
        return "listen_failed"


@dataclass(frozen=True, slots=True)
class Listener:
    """One bound socket with the role of whoever connects to it. `path`: remove it at the end.

    `handed_over`: others listen on it after us.
    """

    role: Role
    sock: socket.socket
    path: Path | None = None
    identity: tuple[int, int] = (0, 0)
    handed_over: bool = False


def inherited(
    environ: MutableMapping[str, str], first_fd: int = _FIRST_FD
) -> dict[str, socket.socket]:
    """The sockets handed over to this very process, by name; forgets them in the environment.

    A unix socket with a name of its own counts as `local`. Raises ListenError for others.
    """
    pid, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    names = environ.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()) or not count.isdigit():
        return {}
    found: dict[str, socket.socket] = {}
    for n in range(int(count)):
        fd = first_fd + n
        os.set_inheritable(fd, False)
        sock = socket.socket(fileno=fd)
        sock.setblocking(False)
        name = names[n] if n < len(names) else ""
        if name not in {"local", "status", "rpc"}:
            if sock.family != socket.AF_UNIX:
                for taken in (sock, *found.values()):
                    taken.close()
                raise ListenError(
                    f"inherited socket {name!r} is neither named local, status or rpc, nor a "
                    "unix socket"
                )
            name = "local"
        found[name] = sock
    return found


def local_listener(path: Path, given: socket.socket | None = None) -> Listener:
    """The unix socket; takes the place of a socket that a dead agent left behind."""
    if given is not None:
        return Listener(Role.LOCAL, given, handed_over=True)
    if len(os.fsencode(path)) > _PATH_LIMIT:
        raise ListenError(f"{path}: a unix socket's path has at most {_PATH_LIMIT} bytes")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _clear(path)
        before = os.umask(0o117)
        try:
            sock.bind(str(path))
        finally:
            os.umask(before)
        _give_to_group(path)
        identity = _identity(path)
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise ListenError(f"cannot listen on {path}: {error.strerror or error}") from error
    except ListenError:
        sock.close()
        raise
    sock.setblocking(False)
    return Listener(Role.LOCAL, sock, path=path, identity=identity)


def tcp_listener(
    address: str, port: int, role: Role, given: socket.socket | None = None
) -> Listener:
    """A TCP socket with a role: for what everybody who can reach it may do."""
    if given is not None:
        return Listener(role, given, handed_over=True)
    sock = _bound(address, port)
    sock.listen(_BACKLOG)
    return Listener(role, sock)


def rpc_socket(address: str, port: int, given: socket.socket | None = None) -> socket.socket:
    """A TCP socket for TLS. It refuses connections until somebody listens on it."""
    return given if given is not None else _bound(address, port)


def _bound(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((address, port))
    except OSError as error:
        sock.close()
        raise ListenError(
            f"cannot listen on {address}:{port}: {error.strerror or error}"
        ) from error
    sock.setblocking(False)
    return sock


def remove(listener: Listener) -> None:
    """Remove the socket's file, if it is still this socket's."""
    if listener.path is None:
        return
    with contextlib.suppress(OSError):
        if _identity(listener.path) == listener.identity:
            listener.path.unlink()


def _identity(path: Path) -> tuple[int, int]:
    """Inode and birth: the number alone is given again to the next file."""
    found = path.stat()
    return found.st_ino, found.st_mtime_ns


def _clear(path: Path) -> None:
    """Remove a socket that nobody listens on; a live one, or another file, is not ours to take."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ListenError(f"{path} is there and is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            path.unlink()
            return
    raise ListenError(f"another agent listens on {path}")


def _give_to_group(path: Path) -> None:
    with contextlib.suppress(KeyError, PermissionError):
        os.chown(path, -1, grp.getgrnam(GROUP).gr_gid)
