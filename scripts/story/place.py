"""Where the quickstart lives: its directories, its configuration, its ports."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from simulator.machine import SimulatedMachine

ROOT = Path(__file__).resolve().parent.parent.parent
GUEST = ROOT / ".cache" / "guest"
FIRMWARE = ROOT / ".cache" / "firmware"
REPO = "hello"
STATE = ROOT / ".quickstart"
FLEET = "fleet"
LOOK_EVERY_S = 1  # at the GPUs


@dataclass(frozen=True)
class Ports:
    """Free ports of this host: deployment over TLS, deployment in the clear, status."""

    https: int
    plain: int
    status: int


class Place:
    """State in the checkout, sockets under /run or $XDG_RUNTIME_DIR.

    `number`: of a host of the fleet; 0 is the one that is alone. `gpus`: the profile of the host
    that is simulated; it has state of its own.
    """

    def __init__(
        self, host: str = "quickstart", number: int = 0, *, gpus: str | None = None
    ) -> None:
        self.host = host
        self.state = STATE / FLEET / host if number else STATE
        self.machine = SimulatedMachine(self.state / f"host-{gpus}") if gpus else None
        self.agent_state = self.state / (f"state-{gpus}" if gpus else "state")
        self.source = STATE / ("releases-gpus" if gpus else "releases")
        self.config = self.state / "agent.yaml"
        self.log = self.state / "agent.log"
        self.pid_file = self.state / "agent.pid"
        short = hashlib.sha256(str(ROOT).encode()).hexdigest()[:6]
        runtime = os.environ.get("XDG_RUNTIME_DIR")
        base = Path("/run") if os.geteuid() == 0 else Path(runtime or f"/tmp/ea-{os.getuid()}")
        self.run = base / f"ea-{host}-{short}"
        self.socket = self.run / "agent.sock"
        self.bridge = f"ea{short}{number or ''}"
        octet = int(short[:2], 16) % 200 + 20
        self._subnet = f"{octet}.{215 - number}.0/24"
        self.firmware = _firmware()
        self.swapping_qemu = self.state / "qemu-that-swaps"
        self.swapped_initrd = self.state / "swapped.initrd"

    @property
    def attested(self) -> bool:
        """Whether there is a firmware that can be measured, so that guests can give evidence."""
        return self.firmware is not None

    def ports(self) -> Ports:
        """Those of the last run, so that what is deployed stays there; otherwise free ones."""
        path = self.state / "ports"
        if path.exists():
            return Ports(*map(int, path.read_text().split()))
        ports = Ports(*free_ports(3))
        self.state.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{ports.https} {ports.plain} {ports.status}\n")
        return ports

    def is_anothers(self) -> bool:
        """Whether the configuration that is there is of a run on another host."""
        with contextlib.suppress(OSError):
            there = yaml.safe_load(self.config.read_text())
            return bool(there["state_dir"] != str(self.agent_state))
        return False

    def machines(self) -> list[SimulatedMachine]:
        """Every host that was simulated here."""
        return [SimulatedMachine(path) for path in sorted(self.state.glob("host-*"))]

    def write_config(
        self, *, vcpus: int, reserve_vcpus: int = 0, swapping: bool = False, **sections: Any
    ) -> None:
        """Short times, so that the story is short; everything else as on a real host.

        `swapping`: QEMU is started by somebody who gives it another initrd. `sections` come over
        what is here.
        """
        measured = self.attested and self.machine is None  # a stand-in for a GPU has no evidence
        body: dict[str, Any] = {
            "host_id": self.host,
            "state_dir": str(self.agent_state),
            "run_dir": str(self.run),
            "tee": "simulated" if measured else "none",
            "allow_unattested": not measured,
            "qemu": {"firmware_dir": str(FIRMWARE)},
            "network": {
                "bridge": self.bridge,
                "subnet": f"10.{self._subnet}",
                "loopback_subnet": f"127.{self._subnet}",
            },
            "releases": {
                "source": str(self.source),
                "cache_max_gib": 2,
                "default_domain": "enclaves.example",
            },
            "host": {"vcpus": vcpus},
            "reserve": {"memory_mib": 256, "vcpus": reserve_vcpus},
            "update": {"dwell_s": 2, "soak_s": 3, "drain_s": 5, "stop_grace_s": 5},
            "probes": {"interval_s": 1, "timeout_s": 3},
            "listen": {"status": f"127.0.0.1:{self.ports().status}"},
        }
        if self.machine is not None:
            body["host"] |= self.machine.keys
            body["qemu"]["binary"] = str(self.machine.qemu)
            body["inventory"] = {"interval_s": LOOK_EVERY_S}
        for name, values in sections.items():
            body[name] = {**body.get(name, {}), **values}
        if swapping:
            body["qemu"]["binary"] = str(self.swapping_qemu)
        self.state.mkdir(parents=True, exist_ok=True)
        self.config.write_text(yaml.safe_dump(body, sort_keys=False))


def _firmware() -> Path | None:
    record = FIRMWARE / "firmware.json"
    if not record.exists():
        return None
    return FIRMWARE / str(json.loads(record.read_text())["file"])


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports
