"""A process in QEMU's place: it listens where a guest's port would be, and relays its own pipes.

    python -m tests.fakes.psp_guest SOCKET [QEMU's options, which are only looked at from outside]

What comes on stdin is the guest's; what the agent answers goes to stdout. A connection that ends
is followed by the next one.
"""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from agent.host.process import identify
from agent.model.enclave import ProcessIdentity


def main(path: str) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(1)
    os.write(2, b"listening\n")
    while True:
        connection, _ = listener.accept()
        os.write(2, b"+")
        relay(connection)
        os.write(2, b"-")


def relay(connection: socket.socket) -> None:
    with connection:
        while True:
            ready, _, _ = select.select([0, connection], [], [])
            if connection in ready:
                try:
                    data = connection.recv(65536)
                except ConnectionResetError:
                    return
                if not data:
                    return
                os.write(1, data)
            if 0 in ready:
                data = os.read(0, 65536)
                if not data:
                    sys.exit()
                try:
                    connection.sendall(data)
                except OSError:
                    return


class Guest:
    """The other end of the pipes."""

    def __init__(self, process: subprocess.Popen[bytes], path: Path) -> None:
        self.process = process
        self.socket = path
        identity = identify(process.pid)
        assert identity is not None
        self.identity: ProcessIdentity = identity

    def send(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def receive(self, size: int, timeout_s: float = 10) -> bytes:
        """So many bytes, or what came until the time was up."""
        assert self.process.stdout is not None
        data = b""
        while len(data) < size:
            if not select.select([self.process.stdout], [], [], timeout_s)[0]:
                break
            more = os.read(self.process.stdout.fileno(), size - len(data))
            if not more:
                break
            data += more
        return data

    def ask(self, header: str, payload: bytes = b"") -> tuple[int, bytes]:
        """Status and payload of the answer."""
        self.send(bytes.fromhex(header) + payload)
        head = self.receive(8)
        assert head[:5] == b"SPSP\x01", head
        return head[5], self.receive(int.from_bytes(head[6:8], "little"))

    def happenings(self, count: int, timeout_s: float = 10) -> bytes:
        """The next so many: `+` connected, `-` hung up on."""
        assert self.process.stderr is not None
        seen = b""
        while len(seen) < count:
            if not select.select([self.process.stderr], [], [], timeout_s)[0]:
                break
            seen += os.read(self.process.stderr.fileno(), count - len(seen))
        return seen


@contextmanager
def running(path: Path, options: Sequence[str], pass_fds: Sequence[int] = ()) -> Iterator[Guest]:
    command = [sys.executable, "-m", "tests.fakes.psp_guest", str(path), *options]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=pipe, pass_fds=pass_fds
    ) as process:
        try:
            assert process.stderr is not None
            assert process.stderr.readline() == b"listening\n"
            yield Guest(process, path)
        finally:
            process.kill()


if __name__ == "__main__":
    main(sys.argv[1])
