"""A whole network stack behind a guest's tap: what QEMU's card and the guest's kernel would be."""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import struct
import threading
from pathlib import Path

from tests.fakes.netns import CLONE_NEWNET, Server, ip

_TUNSETIFF, _TAP_NO_PI = 0x400454CA, 0x1002
_libc = ctypes.CDLL(None, use_errno=True)


class TapGuest:
    """Joins a server's namespace to the tap `link` of this thread's namespace, frame by frame."""

    def __init__(self, server: Server, *, link: str, mac: str, cidr: str, gateway: str) -> None:
        self._tap = _open_tap(link)
        self._stop, self._ended = os.pipe()
        here = threading.Event()
        self._thread = threading.Thread(target=self._relay, args=(server.pid, here))
        self._thread.start()
        assert here.wait(10)
        ip("link set lo up", server.pid)
        ip(f"link set eth0 address {mac}", server.pid)
        ip(f"addr add {cidr} dev eth0", server.pid)
        ip("link set eth0 up", server.pid)
        ip(f"route add default via {gateway}", server.pid)

    def send(self, frame: bytes) -> None:
        """A frame of the guest's own making."""
        os.write(self._tap, frame)

    def close(self) -> None:
        os.close(self._ended)
        self._thread.join()
        os.close(self._stop)
        os.close(self._tap)

    def _relay(self, pid: int, here: threading.Event) -> None:
        namespace = os.open(Path(f"/proc/{pid}/ns/net"), os.O_RDONLY | os.O_CLOEXEC)
        assert _libc.setns(namespace, CLONE_NEWNET) == 0
        os.close(namespace)
        card = _open_tap("eth0")
        here.set()
        while True:
            ready, _, _ = select.select([self._tap, card, self._stop], [], [])
            if self._stop in ready:
                os.close(card)
                return
            for one, other in ((self._tap, card), (card, self._tap)):
                if one in ready:
                    _write(other, os.read(one, 65536))


def _open_tap(name: str) -> int:
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _TAP_NO_PI))
    return tap


def _write(card: int, frame: bytes) -> None:
    """A card that is down loses what it is given."""
    try:
        os.write(card, frame)
    except OSError:
        return
