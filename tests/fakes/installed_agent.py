"""The agent as an operator has it: installed from a wheel, a service of a systemd of its own."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.fakes import wheels
from tests.fakes.booted_host import INSIDE, BootedHost

AGENT = "enclave-agent.service"
OLD, NEW = "0.0.1", "0.0.2"
CONFIG: Mapping[str, Any] = {
    "host_id": "booted",
    "tee": "none",
    "allow_unattested": True,
    "accel": "tcg",
    "host": {"vcpus": 16},
    "reserve": {"memory_mib": 64, "vcpus": 0},
    "update": {"dwell_s": 0.5, "soak_s": 0.5, "drain_s": 5, "stop_grace_s": 20},
    "probes": {"interval_s": 0.5, "timeout_s": 3},
}


class Installed:
    """A booted host with the agent on it."""

    def __init__(self, host: BootedHost, stuff: Path) -> None:
        self.host = host
        self.stuff = stuff

    def install(self, version: str) -> str:
        """By the script that is shipped; returns what it said."""
        (wheel,) = (self.stuff / "wheels").glob(f"enclave_agent-{version}-*.whl")
        words = ("--wheel", f"/srv/stuff/wheels/{wheel.name}", "--wheels", "/srv/house")
        done = self.host.run(str(INSIDE / "scripts/install"), *words, timeout_s=180)
        return done.stderr

    def cli(self, *words: str, stdin: str = "", timeout_s: float = 120) -> str:
        return self.host.run("enclave-agent", *words, stdin=stdin, timeout_s=timeout_s).stdout

    def status(self) -> Any:
        return json.loads(self.cli("status", "-o", "json"))

    def enclaves(self) -> dict[str, Any]:
        """By deployment."""
        rows = self.status()["deployments"]
        return {row["name"]: row["enclaves"][0] for row in rows if row["enclaves"]}

    def update_of(self, name: str) -> str | None:
        """The status of a deployment's newest update."""
        rows = {row["name"]: row for row in self.status()["deployments"]}
        update = rows.get(name, {}).get("update")
        return update["status"] if update else None

    def pid(self) -> int:
        return int(self.host.show(AGENT, "MainPID")["MainPID"])

    def until_ready(self, timeout_s: float = 40) -> float:
        began = time.monotonic()
        while time.monotonic() - began < timeout_s:
            if self.host.show(AGENT, "ActiveState")["ActiveState"] == "active":
                return time.monotonic() - began
            time.sleep(0.05)
        raise AssertionError(self.host.journal("-u", AGENT, "-n", "40"))

    @contextlib.contextmanager
    def load(self, port: int) -> Iterator[dict[str, Any]]:
        """Requests to the guest and to the local socket all the while; what came of them after."""
        program = str(INSIDE / "tests/fakes/steady_load.py")
        words = (str(port), "/run/enclave-agent/agent.sock")
        told: dict[str, Any] = {}
        with subprocess.Popen(
            self.host.enter("/usr/bin/python3", program, *words),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as running:
            time.sleep(0.5)
            yield told
            time.sleep(0.5)
            output, _ = running.communicate(timeout=60)
        told |= json.loads(output)


def nothing_failed(told: dict[str, Any], *, killed: bool = False) -> None:
    """`killed`: what the agent had accepted when it was is lost with it; nobody is refused."""
    lost = ("ConnectionReset", "BrokenPipe", "answered b''")
    failed = [
        one
        for one in told["failed"]
        if one.startswith("guest") or not killed or not any(word in one for word in lost)
    ]
    assert failed == []
    assert told["guest"] > 5
    assert told["local"] > 5


@contextlib.contextmanager
def installed_host(stuff: Path, source: Path, **sections: Any) -> Iterator[Installed]:
    """A booted host with the earlier version running, and the present one at hand.

    `stuff` is a directory for wheels, `source` the releases'; both are seen inside.
    """
    for version, tree in ((OLD, wheels.earlier_tree), (NEW, wheels.present_tree)):
        wheels.wheel_of(tree(stuff / version), version, stuff / "wheels")
    seen = {stuff: "/srv/stuff", source: "/srv/source", wheels.wheelhouse(): "/srv/house"}
    host = BootedHost(inside={here: Path(there) for here, there in seen.items()})
    config = host.root / "etc/enclave-agent/agent.yaml"
    config.parent.mkdir(parents=True)
    releases = {"source": "/srv/source", "cache_max_gib": 2}
    config.write_text(yaml.safe_dump({**CONFIG, "releases": releases, **sections}))
    try:
        host.boot()
        here = Installed(host, stuff)
        here.install(OLD)
        yield here
    finally:
        host.leave()
