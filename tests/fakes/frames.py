"""Ethernet frames as a guest's card may send them, well formed or forged."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass, replace

BROADCAST = "ff:ff:ff:ff:ff:ff"
TCP, UDP, ICMP = 6, 17, 1
SYN, RST, PSH, ACK = 0x02, 0x04, 0x08, 0x10
_OF_TYPE = {"ipv4": 0x0800, "ipv6": 0x86DD, "lldp": 0x88CC}


@dataclass(frozen=True)
class Packet:
    """An IPv4 packet in its frame. `replace` one of its fields to forge it."""

    from_mac: str
    to_mac: str
    source: str
    destination: str
    protocol: int = UDP
    payload: bytes = b""
    fragment: int = 0  # flags and offset (in units of 8 bytes)
    options: bytes = b""
    length: int | None = None  # of the frame that is sent, cut off there

    def but(self, **changes: object) -> Packet:
        return replace(self, **changes)  # type: ignore[arg-type]

    def ip(self) -> bytes:
        words = 5 + len(self.options) // 4
        total = 4 * words + len(self.payload)
        head = struct.pack(
            "!BBHHHBBH", 0x40 | words, 0, total, 7, self.fragment, 64, self.protocol, 0
        )
        head += socket.inet_aton(self.source) + socket.inet_aton(self.destination) + self.options
        return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + self.payload

    def frame(self) -> bytes:
        return ethernet(self.to_mac, self.from_mac, "ipv4", self.ip())[: self.length]


def ethernet(to: str, sender: str, kind: str | int, body: bytes) -> bytes:
    number = _OF_TYPE[kind] if isinstance(kind, str) else kind
    return mac(to) + mac(sender) + number.to_bytes(2) + body


def tagged(frame: bytes, *tags: tuple[int, int]) -> bytes:
    """The same frame inside VLANs: (ethertype of the tag, number), the outermost first."""
    words = b"".join(struct.pack("!HH", kind, number) for kind, number in tags)
    return frame[:12] + words + frame[12:]


def udp(source_port: int, port: int, text: bytes = b"") -> bytes:
    return struct.pack("!HHHH", source_port, port, 8 + len(text), 0) + text


def tcp(
    ends: tuple[str, str], ports: tuple[int, int], flags: int, *, seq: int = 1, ack: int = 0
) -> bytes:
    """A bare segment from the first end to the second."""
    head = struct.pack("!HHIIBBHHH", *ports, seq, ack, 5 << 4, flags, 1024, 0, 0)
    pseudo = b"".join(map(socket.inet_aton, ends)) + struct.pack("!BBH", 0, TCP, len(head))
    return head[:16] + struct.pack("!H", checksum(pseudo + head)) + head[18:]


def icmp(kind: int, code: int, body: bytes = b"\0" * 8) -> bytes:
    """`body` begins with the four bytes that follow the checksum."""
    whole = struct.pack("!BBH", kind, code, 0) + body
    return whole[:2] + struct.pack("!H", checksum(whole)) + whole[4:]


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def checksum(data: bytes) -> int:
    """RFC 1071."""
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
