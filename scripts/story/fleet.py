"""Two hosts and a coordinator: where they live, how they are begun and how nothing is left.

As root each host is a network namespace with one link to the coordinator's; where that cannot be
had, two daemons share the loopback address.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from scripts.story.agent_process import AgentProcess
from scripts.story.leave import restore, stop_all
from scripts.story.place import FLEET, STATE, Place, free_ports
from scripts.story.tell import Teller
from tests.coordinator.world import Coordinator
from tests.fakes.fleet import DOMAIN

HOSTS = ("roomy", "full")
_TOKEN_LIVES_S = 600
_RPC_PORT = 8471
_COORDINATOR = STATE / FLEET / "coordinator"
_PID_FILE = STATE / FLEET / "coordinator.pid"


@dataclass(frozen=True)
class HostNetwork:
    """Where a host is: its namespace (None: this one), and how the two ends see each other."""

    namespace: str | None
    ours: str
    theirs: str

    @property
    def enter(self) -> tuple[str, ...]:
        return ("ip", "netns", "exec", self.namespace) if self.namespace else ()


@dataclass(frozen=True)
class Host:
    """One of the fleet."""

    place: Place
    network: HostNetwork

    @property
    def name(self) -> str:
        return self.place.host

    @property
    def agent(self) -> AgentProcess:
        return AgentProcess(self.place, self.network.enter)

    def join(self, coordinator: Coordinator, *, vcpus: int, reserve_vcpus: int) -> None:
        """Configure it for the fleet. All it has of it is the authority and a one-time token."""
        home, pki = self.place.state, coordinator.home / "pki"
        token = home / "token"
        token.touch(0o600)
        token.write_text(os.urandom(16).hex())
        until = time.time() + _TOKEN_LIVES_S
        coordinator.ledger.add_token(token.read_text(), self.name, until)
        port = _RPC_PORT if self.network.namespace else free_ports(1)[0]
        tls = {
            "certificate": str(home / "host.pem"),
            "key": str(home / "host.key"),
            "ca": str(pki / "ca.pem"),
            "crl": str(pki / "crl.pem"),
            "trust_domain": DOMAIN,
        }
        self.place.write_config(
            vcpus=vcpus,
            reserve_vcpus=reserve_vcpus,
            listen={"rpc": f"{self.network.theirs}:{port}", "tls": tls},
            coordinator={
                "url": f"https://{self.network.ours}:{coordinator.port}",
                "interval_s": 2,
                "enrol_token_file": str(token),
            },
        )


def places() -> list[Place]:
    return [Place(name, number) for number, name in enumerate(HOSTS, 1)]


def make_hosts(teller: Teller) -> list[Host]:
    """All of them; `leave_fleet` takes back what is made here."""
    hosts = [Host(place, network) for place, network in zip(places(), _yards(teller), strict=True)]
    for host in hosts:
        host.place.state.mkdir(parents=True, exist_ok=True)
        if host.network.namespace:
            _record(host.place).write_text(host.network.namespace)
        where = (
            f"network namespace {host.network.namespace}" if host.network.namespace else "loopback"
        )
        teller.line(f"{host.name}: {where}, seen at {host.network.theirs}")
    return hosts


def start_coordinator() -> Coordinator:
    """A new one, with an authority of its own. It outlives the script."""
    _COORDINATOR.mkdir(mode=0o700, parents=True)
    coordinator = Coordinator(_COORDINATOR, address="0.0.0.0", port=free_ports(1)[0])
    restart_coordinator(coordinator)
    return coordinator


def restart_coordinator(coordinator: Coordinator) -> None:
    coordinator.start()
    assert coordinator.process is not None
    _PID_FILE.write_text(str(coordinator.process.pid))


async def leave_fleet(teller: Teller) -> bool:
    """Stop everything of an earlier run; whether there was one."""
    if not (STATE / FLEET).exists():
        return False
    for place, namespace in zip(places(), _namespaces(), strict=True):
        if place.config.exists():
            teller.line(f"{place.host}:")
            await _leave_host(place, namespace, teller)
        if _there(namespace):
            _ip("netns", "delete", namespace)
    _stop_coordinator()
    shutil.rmtree(STATE / FLEET)
    teller.line("the coordinator and the hosts' namespaces: gone")
    return True


async def _leave_host(place: Place, namespace: str, teller: Teller) -> None:
    """A namespace takes with it what was made in it; a reboot takes the namespace."""
    if not _record(place).exists():
        await stop_all(AgentProcess(place), teller)
        await restore(place, teller)
    elif _there(namespace):
        await stop_all(AgentProcess(place, HostNetwork(namespace, "", "").enter), teller)
    shutil.rmtree(place.run, ignore_errors=True)


def _record(place: Place) -> Path:
    """It is there if the host is a namespace."""
    return place.state / "namespace"


def _stop_coordinator() -> None:
    with contextlib.suppress(OSError, ValueError):
        pid = int(_PID_FILE.read_text())
        if os.fsencode(_COORDINATOR) in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)


def _namespaces() -> list[str]:
    return [f"{place.bridge}-{place.host}" for place in places()]


def _there(namespace: str) -> bool:
    return Path("/run/netns", namespace).exists()


def _yards(teller: Teller) -> list[HostNetwork]:
    """Tried, not guessed from being root."""
    here = [HostNetwork(None, "127.0.0.1", "127.0.0.1") for _ in HOSTS]
    if os.geteuid() != 0:
        return here
    try:
        return [_dig(number, name) for number, name in enumerate(_namespaces())]
    except subprocess.CalledProcessError as error:
        teller.line(f"no network namespaces here ({error.stderr.strip()})")
        for name in filter(_there, _namespaces()):
            _ip("netns", "delete", name)
        return here


def _dig(number: int, name: str) -> HostNetwork:
    """A namespace, and a link to it that goes with it."""
    link = f"{places()[number].bridge}v"
    ours, theirs = (f"10.214.78.{4 * number + end}" for end in (1, 2))
    _ip("netns", "add", name)
    _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
    _ip("address", "add", f"{ours}/30", "dev", link)
    _ip("link", "set", link, "up")
    _ip("-n", name, "link", "set", "lo", "up")
    _ip("-n", name, "address", "add", f"{theirs}/30", "dev", "eth0")
    _ip("-n", name, "link", "set", "eth0", "up")
    return HostNetwork(name, ours, theirs)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
