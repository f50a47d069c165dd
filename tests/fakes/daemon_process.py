"""The real daemon as a process, in a place of its own: directories, bridge, subnets and ports.

Everything that it makes on the host is taken back by `leave`, however the test ended. Nothing here
belongs to an event loop, so that one daemon may serve tests that each have their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol, cast

import aiohttp
import yaml
from multidict import CIMultiDict

from agent.config import Config
from agent.config_file import load_config
from agent.daemon.parts import restore_host, secrets_dir
from tests.leftovers import short_place

CHECKOUT = Path(__file__).resolve().parent.parent.parent
AGENT = (sys.executable, "-m", "agent")
QUICK = {"dwell_s": 0.5, "soak_s": 0.5, "drain_s": 5, "stop_grace_s": 5}
_POLL_S = 0.02


def place(prefix: str = "ead-") -> Path:
    """A private directory with a path short enough for unix sockets. `leave` removes it."""
    return short_place(prefix)


def free_ports(count: int) -> list[int]:
    """TCP ports of 127.0.0.1 on which nobody listens now, and that no client is given."""
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    found: list[int] = []
    candidate = 10_000 + os.getpid() * 7 % (low - 11_000)
    while len(found) < count:
        candidate = candidate + 1 if candidate + 1 < low else 10_000
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", candidate))
            if candidate not in _given:
                found.append(candidate)
    _given.update(found)
    return found


_given: set[int] = set()


class Running(Protocol):
    """A process, as `subprocess.Popen` has it."""

    @property
    def pid(self) -> int: ...
    @property
    def returncode(self) -> int | None: ...
    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, number: int, /) -> None: ...


# How a process is begun: its arguments, working directory, environment and log (appended to).
Launch = Callable[[Sequence[str], Path, Mapping[str, str], Path], Running]


def execute(
    arguments: Sequence[str], directory: Path, environment: Mapping[str, str], log: Path
) -> Running:
    """A new program, in a session of its own."""
    with log.open("ab") as output:
        return subprocess.Popen(
            arguments,
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


@dataclass
class Answer:
    """What the API said."""

    status: int
    body: Any
    headers: Mapping[str, str]

    @property
    def code(self) -> str:
        """Of problem details."""
        return str(self.body["code"])


@dataclass
class Daemon:
    """One daemon. `command` runs it; `settings` go over the configuration, section by section."""

    home: Path
    source: Path
    mode: str = "user"  # of the network: user (with the userspace data plane), tap (with nftables)
    settings: dict[str, Any] = field(default_factory=dict)
    command: tuple[str, ...] = AGENT
    environment: dict[str, str] = field(default_factory=dict)
    launch: Launch = execute
    process: Running | None = None

    def __post_init__(self) -> None:
        unique = self.home.stat().st_ino
        self.state = self.home / "state"
        self.run = self.home / "run"
        self.file = self.home / "agent.yaml"
        self.log = self.home / "agent.log"
        self.bridge = f"ead{unique % 0xFFFFFF:06x}"
        self.https, self.plain = free_ports(2)
        octets = f"{unique // 250 % 200 + 30}.{unique % 250}"
        self.config = {
            "host_id": "tests",
            "state_dir": str(self.state),
            "run_dir": str(self.run),
            "tee": "none",
            "allow_unattested": True,
            "accel": "tcg",
            "supervisor": "detached",  # also where systemd runs: tests/systemd has a host for it
            "network": {
                "mode": self.mode,
                "bridge": self.bridge,
                "subnet": f"10.{octets}.0/24",
                "loopback_subnet": f"127.{octets}.0/24",
                # nothing is held on a user-mode network, which is a problem until it is said
                **({"guest_egress": "any"} if self.mode == "user" else {}),
            },
            "traffic": {"mode": "nftables" if self.mode == "tap" else "userspace"},
            "releases": {
                "source": str(self.source),
                "cache_max_gib": 2,
                "default_domain": "enclaves.example",
            },
            "host": {"vcpus": 8},
            "reserve": {"memory_mib": 64, "vcpus": 0},
            "update": QUICK,
            "probes": {"interval_s": 0.5, "timeout_s": 3},
            "listen": {"status": None},
        }
        self.configure(**self.settings)

    def configure(self, **sections: Any) -> None:
        """Change the file; a daemon that runs goes on with what it read."""
        for name, value in sections.items():
            known = self.config.get(name)
            both = isinstance(value, dict) and isinstance(known, dict)
            self.config[name] = {**known, **value} if both else value
        self.file.write_text(yaml.safe_dump(self.config, sort_keys=False))

    def typed_config(self) -> Config:
        return load_config(self.file, {})

    @property
    def socket(self) -> Path:
        return self.run / "agent.sock"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    # --- life ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin; does not wait."""
        environ = {n: v for n, v in os.environ.items() if not n.startswith("ENCLAVE_AGENT_")}
        arguments = [*self.command, "--config", str(self.file), "run"]
        self.process = self.launch(arguments, CHECKOUT, environ | self.environment, self.log)

    async def ready(self, timeout_s: float = 60) -> float:
        """Seconds until it said that it is ready."""
        begin = time.monotonic()
        while time.monotonic() - begin < timeout_s:
            if self.ended:
                break
            with contextlib.suppress(aiohttp.ClientError, OSError):
                if (await self.get("/readyz")).status == 200:
                    return time.monotonic() - begin
            await asyncio.sleep(_POLL_S)
        raise AssertionError(f"the daemon did not get ready:\n{self.log_tail()}")

    async def up(self) -> float:
        """Start, and wait until it is ready."""
        self.start()
        return await self.ready()

    @property
    def ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def signal(self, number: signal.Signals, timeout_s: float = 30) -> int:
        """End it so; returns its exit status."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)
        return self.process.wait(timeout_s)

    def kill(self) -> None:
        """As a crash would: kill -9."""
        assert self.signal(signal.SIGKILL) == -signal.SIGKILL

    def stop(self) -> None:
        """As an operator would; its VMs and data plane go on."""
        status = self.signal(signal.SIGTERM)
        assert status == 0, f"exit status {status}:\n{self.log_tail()}"

    def log_tail(self, max_chars: int = 4000) -> str:
        return self.log.read_text(errors="replace")[-max_chars:]

    async def leave(self) -> None:
        """Everything of it gone: processes, links, tables, sysctls, directories. Idempotent."""
        if self.process is not None and not self.ended:
            self.signal(signal.SIGKILL)
        kill_all(processes_in(self.home))
        if self.state.exists():
            config = self.typed_config()
            await restore_host(config)
            shutil.rmtree(secrets_dir(config), ignore_errors=True)
        shutil.rmtree(self.home, ignore_errors=True)

    # --- asking --------------------------------------------------------------------------------

    async def get(self, path: str) -> Answer:
        """Without a client library, which costs more than the answer: most of it is polling.

        Raises OSError where nobody answers, or not to the end.
        """
        reader, writer = await asyncio.open_unix_connection(self.socket)
        try:
            head = f"GET {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n"
            writer.write(head.encode())
            said = await reader.read()
        finally:
            writer.close()
        return _parsed(said)

    async def send(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        raw: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """One request over the agent's socket, on a connection of its own."""
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        given = {"Content-Type": "application/json"} if data is not None else {}
        sent = io.BytesIO(data) if data is not None else None
        connector = aiohttp.UnixConnector(str(self.socket))
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.request(
                method, f"http://agent{path}", data=sent, headers={**given, **(headers or {})}
            ) as answer,
        ):
            return Answer(answer.status, _body(await answer.read()), answer.headers)

    async def cli(self, *words: str, stdin: bytes = b"") -> tuple[int, str, str]:
        """One command of the command line: exit code, standard output, standard error."""
        with tempfile.TemporaryFile() as given:  # which it need not read to its end
            given.write(stdin)
            given.seek(0)
            return await self._cli(words, given)

    async def _cli(self, words: tuple[str, ...], stdin: IO[bytes]) -> tuple[int, str, str]:
        process = await asyncio.create_subprocess_exec(
            *AGENT,
            *("--socket", str(self.socket), *words),
            cwd=CHECKOUT,
            stdin=stdin,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        return process.returncode or 0, out.decode(), err.decode()

    async def deploy(
        self, name: str = "hello", *, tag: str = "v1", key: str | None = None, **fields: Any
    ) -> Answer:
        """Listening on this daemon's two ports. `key` makes it the same request if told again."""
        body = {
            "tag": tag,
            "repo": "hello",
            "listen": f"127.0.0.1:{self.https}",
            "publish": [{"listen": f"127.0.0.1:{self.plain}", "guest_port": 8080}],
        }
        return await self.send("PUT", f"/v1/deployments/{name}", body | fields, headers=keyed(key))

    async def update(
        self, name: str = "hello", *, key: str | None = None, **fields: Any
    ) -> Answer:
        path = f"/v1/deployments/{name}/updates"
        return await self.send("POST", path, fields, headers=keyed(key))

    async def deployment(self, name: str = "hello") -> dict[str, Any] | None:
        answer = await self.get(f"/v1/deployments/{name}")
        assert answer.status in (200, 404), answer
        return answer.body if answer.status == 200 else None

    async def until(
        self,
        holds: Callable[[dict[str, Any] | None], bool],
        name: str = "hello",
        timeout_s: float = 90,
    ) -> dict[str, Any] | None:
        """Wait until the deployment is so; returns it as it is then."""
        deadline = time.monotonic() + timeout_s
        while True:
            seen = await self.deployment(name)
            if holds(seen):
                return seen
            if time.monotonic() > deadline or self.ended:
                raise AssertionError(f"never came: {brief(seen)}\n{self.log_tail()}")
            await asyncio.sleep(_POLL_S)

    async def step(self, *steps: str, name: str = "hello") -> dict[str, Any]:
        """Wait until the update is in one of these steps (or over); returns the update."""
        found = await self.until(
            lambda d: (
                d is not None and (d["update"]["step"] in steps or d["update"]["finished_at"])
            ),
            name,
        )
        assert found is not None
        assert found["update"]["step"] in steps, brief(found)
        return found["update"]

    async def over(self, name: str = "hello", timeout_s: float = 90) -> dict[str, Any]:
        """Wait for the update's end (what failed has been torn down then); returns the update."""
        found = await self.until(
            lambda d: d is not None and d["update"]["finished_at"] is not None, name, timeout_s
        )
        assert found is not None
        return found["update"]


class _Said:
    """What `HTTPResponse` takes for a socket."""

    def __init__(self, said: bytes) -> None:
        self._said = said

    def makefile(self, *_: Any) -> IO[bytes]:
        return io.BytesIO(self._said)


def _parsed(said: bytes) -> Answer:
    """Raises ConnectionResetError for an answer that is not whole."""
    response = http.client.HTTPResponse(cast("socket.socket", _Said(said)))
    try:
        response.begin()
        text = response.read()
    except http.client.HTTPException as error:
        raise ConnectionResetError(f"{len(said)} bytes, and no answer") from error
    return Answer(response.status, _body(text), CIMultiDict(response.getheaders()))


def _body(text: bytes) -> Any:
    return json.loads(text) if text[:1] in (b"{", b"[") else text


def keyed(key: str | None) -> dict[str, str]:
    return {} if key is None else {"Idempotency-Key": key}


def brief(deployment: dict[str, Any] | None) -> str:
    """What an assertion shows of a deployment."""
    if deployment is None:
        return "no such deployment"
    update = deployment["update"] or {}
    known = {key: update.get(key) for key in ("tag", "strategy", "status", "step", "error")}
    return f"{deployment['name']}: {deployment['status']}, update {known}, {deployment['error']}"


def processes_in(home: Path) -> dict[int, list[str]]:
    """Pid and arguments of every process that was told of a path in this place; not ourselves."""
    found = {}
    told = os.fsencode(f"{home}/")
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            line = (entry / "cmdline").read_bytes()
            if told in line:
                found[int(entry.name)] = line.decode(errors="replace").split("\0")[:-1]
    return found


def kill_all(processes: Mapping[int, object]) -> None:
    """SIGKILL, and wait until each is gone."""
    for pid in processes:
        with contextlib.suppress(ProcessLookupError):
            fd = os.pidfd_open(pid)
            try:
                signal.pidfd_send_signal(fd, signal.SIGKILL)
                _await_end(fd)
            finally:
                os.close(fd)


def _await_end(pidfd: int) -> None:
    import select

    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    assert poller.poll(30_000), "a killed process does not end"
