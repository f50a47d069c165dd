"""What QEMU's user-mode network lets a restricted guest do, asked of QEMU itself.

A hub joins the network of a launch to this test, which plays the guest frame by frame.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.enclaves.argv import build_argv
from agent.enclaves.network_user import GUEST, UserNetwork
from agent.enclaves.spec import UserNic
from agent.model.ids import EnclaveId
from tests.fakes import vm_specs
from tests.fakes.argv_bench import QEMU
from tests.fakes.frames import ACK, BROADCAST, SYN, TCP, Packet, tcp
from tests.fakes.guest_card import arp

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(shutil.which(QEMU) is None, reason="no QEMU here"),
]

MAC = "02:00:00:00:00:07"
ADDRESS = GUEST.cidr.partition("/")[0]
GATEWAY = GUEST.gateway
HTTPS = 443


class Guest:
    """On QEMU's socket network: each frame behind its length (qemu's net/socket.c)."""

    def __init__(self, wire: socket.socket) -> None:
        self._wire = wire

    def send(self, frame: bytes) -> None:
        self._wire.sendall(struct.pack("!I", len(frame)) + frame)

    def frames(self, for_s: float) -> Iterator[bytes]:
        """Until nothing came for so long."""
        self._wire.settimeout(for_s)
        with contextlib.suppress(TimeoutError):
            while True:
                (length,) = struct.unpack("!I", self._read(4))
                yield self._read(length)

    def _read(self, size: int) -> bytes:
        found = b""
        while len(found) < size:
            piece = self._wire.recv(size - len(found))
            if not piece:
                raise ConnectionError("QEMU ended")
            found += piece
        return found

    def gateways_mac(self) -> str:
        self.send(arp(1, (MAC, ADDRESS), ("00:00:00:00:00:00", GATEWAY), BROADCAST))
        for frame in self.frames(5):
            if frame[12:14] == b"\x08\x06" and frame[20:22] == b"\0\2":
                return frame[6:12].hex(":")
        raise AssertionError("the gateway does not answer")

    def is_let_in(self, to_mac: str, address: str, port: int) -> bool:
        """Whether its SYN is answered by a SYN/ACK."""
        syn = tcp((ADDRESS, address), (40000, port), SYN)
        self.send(Packet(MAC, to_mac, ADDRESS, address, TCP, syn).frame())
        return any(_is_tcp(frame, SYN | ACK) for frame in self.frames(1))


def _is_tcp(frame: bytes, flags: int) -> bool:
    return frame[12:14] == b"\x08\x00" and frame[23] == TCP and frame[47] & 0x3F == flags


@contextlib.contextmanager
def guest_of(nic: UserNic) -> Iterator[Guest]:
    spec = vm_specs.base(vm_specs.imagined(), nic, Path("/r/qmp"))
    argv = build_argv("qemu", spec)
    netdev = argv[argv.index("-netdev") + 1]
    assert json.loads(netdev)["id"] == "net"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        words = ["-M", "none", "-nodefaults", "-display", "none", "-netdev", netdev]
        words += ["-netdev", f"socket,id=peer,connect=127.0.0.1:{port}"]
        for name in ("net", "peer"):
            words += ["-netdev", f"hubport,id=hub-{name},hubid=0,netdev={name}"]
        qemu = subprocess.Popen([QEMU, *words])
        try:
            listener.settimeout(20)
            wire, _ = listener.accept()
            with wire:
                yield Guest(wire)
        finally:
            qemu.kill()
            qemu.wait()


@pytest.mark.parametrize("restricted", [False, True], ids=["open", "restricted"])
async def test_a_restricted_guest_opens_nothing_and_is_still_reached(restricted: bool) -> None:
    network = UserNetwork("127.219.0.0/24", restricted=restricted)
    address = network.addresses()[0]
    nic = await network.attach(EnclaveId("abcdefgh"), address, (HTTPS,))
    forward = network.endpoint(address, HTTPS, (HTTPS,))
    with socket.create_server(("127.0.0.1", 0)) as of_the_host, guest_of(nic) as guest:
        to_mac = guest.gateways_mac()
        let_in = guest.is_let_in(to_mac, GATEWAY, of_the_host.getsockname()[1])
        assert let_in is not restricted
        with socket.create_connection((forward.address, forward.port), timeout=5):
            assert any(_is_tcp(frame, SYN) for frame in guest.frames(2))
