"""Whether another process of this host listens where we would publish.

A packet filter would take such a socket's connections away without a word, so it is asked first.
"""

from __future__ import annotations

import errno
import socket
from pathlib import Path

from agent.model.resources import Listen

_LISTEN_STATE = "0A"


def occupied(listen: Listen) -> bool:
    """Ask the kernel by binding; an address that is not the host's own is free.

    A bind may also collide with an outgoing connection that happens to use the port; that one is
    nobody's listener, so the kernel's table of sockets has the last word.
    """
    family = socket.AF_INET6 if listen.is_ipv6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((listen.address, listen.port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE and _listens_on(listen.port)
    return False


def _listens_on(port: int) -> bool:
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        lines = table.read_text().splitlines()[1:] if table.exists() else []
        for fields in map(str.split, lines):
            if fields[3] == _LISTEN_STATE and int(fields[1].rpartition(":")[2], 16) == port:
                return True
    return False
