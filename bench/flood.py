"""A guest that sends as fast as it is told, as a process: it writes frames into a tap.

    python -m bench.flood SPEC     SPEC: JSON, see `Spec`
    stdin   "tell": a line of JSON, see `Sent`; end of file: the end
    stdout  the lines

Every frame is a datagram of one of so many flows, by turns; all are made before the first is sent.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
import sys
import time

import msgspec

_TUNSETIFF, _TAP_NO_PI = 0x400454CA, 0x1002
_BATCH_S = 0.004
_FIRST_PORT = 1024
_DISCARD = 9


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """Who sends into which tap, to whom."""

    link: str
    mac: str
    address: str
    host_mac: str
    target: str
    frames_per_s: int = 50_000
    flows: int = 20_000


class Sent(msgspec.Struct, kw_only=True):
    """Frames that the tap took so far, since when (monotonic seconds)."""

    frames: int = 0
    elapsed_s: float = 0


def frames(spec: Spec) -> list[bytes]:
    """One of each flow."""
    ethernet = bytes.fromhex((spec.host_mac + spec.mac).replace(":", "")) + b"\x08\x00"
    head = struct.pack("!BBHHHBBH", 0x45, 0, 29, 0, 0, 64, socket.IPPROTO_UDP, 0)
    ends = socket.inet_aton(spec.address) + socket.inet_aton(spec.target)
    words = struct.unpack("!10H", head + ends)
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    ip = head[:10] + struct.pack("!H", ~total & 0xFFFF) + ends
    return [
        ethernet + ip + struct.pack("!HHHH", _FIRST_PORT + flow, _DISCARD, 9, 0) + b"x"
        for flow in range(spec.flows)
    ]


def _send_on(spec: Spec, tap: int) -> None:
    made, sent, began = frames(spec), 0, time.monotonic()
    while True:
        now = time.monotonic() - began
        while sent < now * spec.frames_per_s:
            os.write(tap, made[sent % len(made)])
            sent += 1
        if select.select([sys.stdin], [], [], _BATCH_S)[0]:
            if not sys.stdin.readline():
                return
            told = Sent(frames=sent, elapsed_s=time.monotonic() - began)
            sys.stdout.write(msgspec.json.encode(told).decode() + "\n")
            sys.stdout.flush()


def _main(spec: Spec) -> None:
    tap = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH22x", spec.link.encode(), _TAP_NO_PI))
    _send_on(spec, tap)


if __name__ == "__main__":
    _main(msgspec.json.decode(sys.argv[1], type=Spec))
