"""Whether another process of this host listens where we would publish.

A packet filter would take such a socket's connections away without a word, so it is asked first.
"""

from __future__ import annotations

import errno
import socket

from agent.host.listener_owners import listener_at
from agent.model.resources import Listen


def occupant(listen: Listen) -> str | None:
    """Who listens there, in words; None: nobody. An address that is not the host's own is free.

    The kernel is asked by binding. A bind may also collide with an outgoing connection that uses
    the port by chance, or with our own holder: those are no listeners, so the kernel's list of
    listeners has the last word.
    """
    family = socket.AF_INET6 if listen.is_ipv6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((listen.address, listen.port))
        except OSError as error:
            return listener_at(listen) if error.errno == errno.EADDRINUSE else None
    return None
