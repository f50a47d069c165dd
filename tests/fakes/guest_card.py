"""A guest's end of a tap, for tests that look at single frames."""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct

IPV4, ARP, EXPERIMENT = 0x0800, 0x0806, 0x88B5


class Card:
    """The guest's end of a tap: whole Ethernet frames."""

    _TUNSETIFF = 0x400454CA
    _TAP_NO_PI = 0x1002

    def __init__(self, tap: str) -> None:
        self.others: list[bytes] = []
        self._fd = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(
            self._fd, self._TUNSETIFF, struct.pack("16sH22x", tap.encode(), self._TAP_NO_PI)
        )

    def send(self, frame: bytes) -> None:
        os.write(self._fd, frame)

    def next_of(self, ethertype: int) -> bytes:
        """Wait for a frame of this type; what else comes before is kept in `others`."""
        while select.select([self._fd], [], [], 10)[0]:
            got = os.read(self._fd, 65536)
            if got[12:14] == ethertype.to_bytes(2):
                return got
            self.others.append(got)
        raise TimeoutError(f"no frame of type {ethertype:#06x} came")

    def close(self) -> None:
        os.close(self._fd)


def frame(to: str, sender: str, payload: bytes) -> bytes:
    """An Ethernet frame of an experimental type."""
    return _mac(to) + _mac(sender) + EXPERIMENT.to_bytes(2) + payload.ljust(46, b"\0")


def arp(operation: int, sender: tuple[str, str], target: tuple[str, str], to: str) -> bytes:
    """An ARP message (1 asks, 2 answers); sender and target are (mac, address)."""
    body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation)
    for mac, address in (sender, target):
        body += _mac(mac) + socket.inet_aton(address)
    return _mac(to) + _mac(sender[0]) + ARP.to_bytes(2) + body


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))
