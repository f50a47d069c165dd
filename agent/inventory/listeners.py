"""TCP sockets that listen on this host: asked by netlink, or read from /proc/net/tcp and tcp6.

Invariant: never fewer than there are in this network namespace. Whether an IPv6 wildcard takes
IPv4 connections too is not shown in /proc, so that one without an IPv4 listener on its port is
taken for a dual-stack socket there, which is the default.
"""

from __future__ import annotations

import contextlib
import ipaddress
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from agent.host.sock_diag import read_listening
from agent.model.resources import Listen

_PROC = Path("/proc")
_LISTEN_STATE = "0A"
_ANY4 = "0.0.0.0"  # noqa: S104 - compared, not bound
_ANY6 = "::"


def read_listeners(proc_root: Path = _PROC) -> tuple[Listen, ...]:
    """Every listening TCP socket of this network namespace, sorted, each once."""
    if proc_root == _PROC:
        with contextlib.suppress(OSError):  # a kernel without tcp_diag, a sandbox without netlink
            return tuple(sorted(read_listening()))
    return read_proc(proc_root)


def read_proc(proc_root: Path = _PROC) -> tuple[Listen, ...]:
    """The same from the kernel's tables.

    A missing tcp6 (a kernel without IPv6) means none there; OSError if tcp itself is not readable.
    """
    net = proc_root / "net"
    found = set(_parse((net / "tcp").read_text().splitlines()))
    with contextlib.suppress(FileNotFoundError):
        found |= set(_parse((net / "tcp6").read_text().splitlines()))
    ports4 = {listen.port for listen in found if not listen.is_ipv6}
    dual = {
        Listen(address=_ANY4, port=listen.port)
        for listen in found
        if listen.address == _ANY6 and listen.port not in ports4
    }
    return tuple(sorted(found | dual))


def _parse(lines: Iterable[str]) -> Iterator[Listen]:
    """Fields: slot, local address:port in hex, remote, state, …; the first line is the header."""
    for line in list(lines)[1:]:
        fields = line.split()
        if len(fields) > 3 and fields[3] == _LISTEN_STATE:
            address, _, port = fields[1].partition(":")
            yield Listen(address=_address(address), port=int(port, 16))


def _address(text: str) -> str:
    """The kernel prints 32-bit words in the machine's byte order."""
    raw = bytes.fromhex(text)
    if sys.byteorder == "little":
        raw = b"".join(raw[i : i + 4][::-1] for i in range(0, len(raw), 4))
    if len(raw) == 4:
        return str(ipaddress.IPv4Address(raw))
    wide = ipaddress.IPv6Address(raw)
    return str(wide.ipv4_mapped or wide)
