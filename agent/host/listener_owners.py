"""Which programs have listening sockets open: a person who must free a port needs the name.

Invariant: `/proc` is walked only when there is a socket that was not met before, so that a host on
which nothing changes costs nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from pathlib import Path

from agent.host.process import PROC, start_ticks
from agent.host.sock_diag import read_listening
from agent.model.resources import Listen

SOMEBODY = "a program of this host"


class ListenerOwners:
    """Remembers whose each socket is for as long as it listens."""

    def __init__(self, proc_root: Path = PROC) -> None:
        self._proc = proc_root
        self._known: dict[int, str | None] = {}  # by inode; None: nobody that we may look at

    def read(self) -> dict[Listen, str]:
        """Program and process of each listener of this namespace, as far as they can be told.

        Raises OSError where the kernel does not list its listeners.
        """
        listening = read_listening()
        sockets = set(listening.values())
        known = self._known
        if sockets - known.keys():
            found = dict(_owners(self._proc, sockets))
            known = {inode: known.get(inode) or found.get(inode) for inode in sockets}
        self._known = {inode: known[inode] for inode in sockets}
        return {
            listen: name
            for listen, inode in listening.items()
            if (name := self._known[inode]) is not None
        }


def listener_at(listen: Listen) -> str | None:
    """What listens so that this listener could not, in words with its program; None: nothing.

    Where the kernel does not list its listeners there may always be one.
    """
    try:
        names = ListenerOwners().read()
        others = sorted(other for other in read_listening() if other.overlaps(listen))
    except OSError:
        return SOMEBODY
    return f"{names.get(others[0], SOMEBODY)}, which listens on {others[0]}" if others else None


def _owners(proc: Path, sockets: Collection[int]) -> Iterator[tuple[int, str]]:
    """Of a socket that several have, the last is whoever started last: a program, rather than the
    init that gave it the socket.
    """
    links = {f"socket:[{inode}]": inode for inode in sockets}
    for pid in _by_age(proc):
        with contextlib.suppress(OSError):  # it ended, or is not ours to look at
            place = proc / str(pid)
            name = (place / "comm").read_text().strip()
            for descriptor in (place / "fd").iterdir():
                inode = links.get(_target(descriptor))
                if inode is not None:
                    yield inode, f"{name} (process {pid})"


def _by_age(proc: Path) -> list[int]:
    """Pids, the eldest process first; of two of one tick, the smaller pid."""
    started = []
    for entry in proc.iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):  # hidden from us
                ticks = start_ticks(entry)
                if ticks is not None:
                    started.append((ticks, int(entry.name)))
    return [pid for _, pid in sorted(started)]


def _target(link: Path) -> str:
    with contextlib.suppress(OSError):
        return str(link.readlink())
    return ""
