"""Real daemons and a real coordinator, each a process; what a test does to them and asks them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from agent.model.event import Event
from agent.pki.authority import Authority
from agent.pki.names import host_uri
from agent.store.chain import verify_chain
from tests.coordinator.ledger import Ledger
from tests.coordinator.service import issue, prepare
from tests.fakes.daemon_process import CHECKOUT, Answer, Daemon, free_ports, place
from tests.fakes.fleet import DOMAIN, HOST

GENESIS = (0, "0" * 64)
_SERVICE = (sys.executable, "-m", "tests.coordinator.service")


@dataclass
class Coordinator:
    """The process, its ledger as a reader, and its requests to agents."""

    home: Path
    address: str = "127.0.0.1"
    port: int = field(default_factory=lambda: free_ports(1)[0])
    prefix: tuple[str, ...] = ()  # how to run it elsewhere
    process: subprocess.Popen[str] | None = None
    epoch: int = 1

    def __post_init__(self) -> None:
        self.authority: Authority = prepare(self.home, DOMAIN)
        self.ledger = Ledger(self.home / "ledger.db")

    def start(self) -> None:
        arguments = (str(self.home), self.address, str(self.port))
        self.process = subprocess.Popen(
            [*self.prefix, *_SERVICE, *arguments],
            cwd=CHECKOUT,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "serving\n"

    def kill(self) -> None:
        if self.process is not None:
            with self.process as process:
                process.kill()
            self.process = None

    def leave(self) -> None:
        self.kill()
        self.ledger.close()
        shutil.rmtree(self.home, ignore_errors=True)

    def issue_to(self, daemon: Daemon, host_id: str = HOST) -> dict[str, Any]:
        """Certificates for an agent; returns `listen.tls` for its configuration."""
        issue(self.authority, host_uri(DOMAIN, host_id), daemon.home / "host")
        return self.section(daemon)

    def become(self, uri: str) -> None:
        """Serve with another certificate of the fleet, from the next start on."""
        issue(self.authority, uri, self.home / "coordinator")

    def section(self, daemon: Daemon) -> dict[str, str]:
        return {
            "certificate": str(daemon.home / "host.pem"),
            "key": str(daemon.home / "host.key"),
            "ca": str(self.home / "pki/ca.pem"),
            "crl": str(self.home / "pki/crl.pem"),
            "trust_domain": DOMAIN,
        }

    @contextlib.asynccontextmanager
    async def calling(
        self, base: str, *, keep: bool = False
    ) -> AsyncIterator[aiohttp.ClientSession]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.load_verify_locations(self.home / "pki/ca.pem")
        context.load_cert_chain(self.home / "coordinator.pem", self.home / "coordinator.key")
        connector = aiohttp.TCPConnector(ssl=context, force_close=not keep)
        timeout = aiohttp.ClientTimeout(total=10, sock_connect=2)
        async with aiohttp.ClientSession(base, connector=connector, timeout=timeout) as session:
            yield session

    async def call(
        self, host: str, method: str, path: str, body: Any = None, *, key: str | None = None
    ) -> Answer:
        """An RPC to an agent, where its last report says that it is."""
        report = self.ledger.report(host)
        assert report is not None
        headers = {"Coordinator-Epoch": str(self.epoch)}
        headers |= {"Idempotency-Key": key} if key else {}
        async with (
            self.calling(report["host"]["rpc_url"]) as session,
            session.request(method, path, json=body, headers=headers) as answer,
        ):
            text = await answer.read()
            known = json.loads(text) if text[:1] in (b"{", b"[") else text
            return Answer(answer.status, known, answer.headers)

    async def insist(
        self,
        host: str,
        method: str,
        path: str,
        body: Any = None,
        *,
        key: str,
        timeout_s: float = 40,
    ) -> Answer:
        """The same request told again until it is answered."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                answer = await self.call(host, method, path, body, key=key)
                if answer.status < 500:
                    return answer
            except (aiohttp.ClientError, OSError, TimeoutError):
                assert time.monotonic() < deadline, "never answered"
            await asyncio.sleep(0.1)

    def said(self, host: str, name: str = "hello") -> dict[str, Any] | None:
        """What the last report says of a deployment."""
        report = self.ledger.report(host) or {"deployments": []}
        return next((one for one in report["deployments"] if one["name"] == name), None)

    async def until(
        self,
        holds: Callable[[], object],
        timeout_s: float = 60,
        seen: Callable[[], object] = lambda: "",
    ) -> None:
        """Wait until it is so. `seen` is told if it never is."""
        deadline = time.monotonic() + timeout_s
        while not holds():
            assert time.monotonic() < deadline, f"never came: {seen()}"
            await asyncio.sleep(0.02)

    async def ended(self, host: str, tag: str, timeout_s: float = 60) -> None:
        """Until the reports tell that the deployment is on that tag and no update runs."""

        def holds() -> bool:
            said = self.said(host)
            return bool(
                said
                and said["tag"] == tag
                and said["update"]
                and said["update"]["finished_at"]
                and said["status"] == "running"
            )

        await self.until(holds, timeout_s, lambda: self.said(host))


async def same_end(
    daemon: Daemon, coordinator: Coordinator, host: str = HOST, timeout_s: float = 60
) -> list[Event]:
    """The coordinator has the agent's whole chain, gap-free and in order; returns it."""
    newest = 0
    async with asyncio.timeout(timeout_s):
        while True:
            answer = await daemon.get("/v1/events?limit=1000")
            events = msgspec.convert(answer.body["events"], list[Event])
            newest = events[-1].sequence
            if coordinator.ledger.newest_event(host) >= newest:
                break
            await asyncio.sleep(0.05)
    known = msgspec.convert(coordinator.ledger.events(host), list[Event])
    assert verify_chain(known, GENESIS) is None
    assert [event.sequence for event in known] == list(range(1, len(known) + 1))
    assert known[: len(events)] == events
    return known


@contextlib.asynccontextmanager
async def world(
    source: Path, *, command: tuple[str, ...] = (), **settings: Any
) -> AsyncIterator[tuple[Daemon, Coordinator]]:
    """A coordinator, and a daemon that is ready and has reported to it."""
    coordinator = Coordinator(place("eac-"))
    coordinator.start()
    daemon = Daemon(place(), source, settings=settings)
    if command:
        daemon.command = (*command, *daemon.command)
    join(daemon, coordinator)
    try:
        await daemon.up()
        await coordinator.until(lambda: coordinator.ledger.report(HOST))
        yield daemon, coordinator
    finally:
        await daemon.leave()
        coordinator.leave()


def join(
    daemon: Daemon,
    coordinator: Coordinator,
    *,
    interval_s: float = 1,
    rpc: str = "127.0.0.1",
    seen_as: str | None = None,
) -> None:
    """Configure a daemon for the coordinator's fleet. `seen_as`: the coordinator's address."""
    (port,) = free_ports(1)
    host_id = str(daemon.config["host_id"])
    daemon.configure(
        listen={"rpc": f"{rpc}:{port}", "tls": coordinator.issue_to(daemon, host_id)},
        coordinator={
            "url": f"https://{seen_as or coordinator.address}:{coordinator.port}",
            "interval_s": interval_s,
        },
    )


def rss_kib(pid: int) -> int:
    return (
        int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") // 1024
    )
