"""A program in another network namespace, that does what it is told and says what came of it."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from tests.fakes.netns import ip

_PROGRAM = Path(__file__).parents[1] / "fakes" / "remote_program.py"


class Remote:
    """Joins a process's namespace, or has a new one. `pid` names it."""

    def __init__(self, inside: int | None = None) -> None:
        prefix = ["nsenter", "-t", str(inside), "-n"] if inside is not None else ["unshare", "-n"]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            [*prefix, sys.executable, str(_PROGRAM)], stdin=pipe, stdout=pipe, text=True
        )
        self.pid = self._process.pid
        self._call("hello")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        with self._process:
            pass

    def ask(self, address: str, port: int) -> str:
        """The answer to `who`."""
        return str(self._call("ask", address, port))

    def outcome(self, address: str, port: int) -> str:
        """connected, refused, reset or timed out (after a second)."""
        return str(self._call("outcome", address, port))

    def datagram(self, address: str, port: int) -> str:
        """closed, prohibited, or unanswered (after a second)."""
        return str(self._call("datagram", address, port))

    def flood(self, address: str, *, ports: int, packets: int = 1) -> None:
        """Send datagrams to so many ports, the first of which is 10000."""
        assert self._call("flood", address, 10000, ports, packets) == "sent"

    def hold(self, address: str, port: int) -> None:
        """Connect, say a word, and stay idle."""
        assert self._call("hold", address, port) == "held"

    def held(self, *, say: str = "") -> list[str]:
        """What became of each connection held, within a second or, after a word, five."""
        answer = self._call("held", say)
        assert isinstance(answer, list)
        return answer

    @contextlib.contextmanager
    def server(self, port: int) -> Iterator[None]:
        self._call("serve", port)
        yield

    def send_loopback_to(self, gateway: str) -> None:
        """Route 127.0.0.1 out of this namespace, as an attacker would."""
        self._call("localnet")
        ip("addr del 127.0.0.1/8 dev lo", self.pid)
        ip(f"route add 127.0.0.1/32 via {gateway} dev eth0", self.pid)

    def _call(self, verb: str, *arguments: object) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([verb, *arguments]) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())
