"""Where the bench lives: directories, configuration, names in the kernel; all its own."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
GUEST = ROOT / ".cache" / "guest"
REPO = "bench"

_WRAPPER = """#!/bin/bash
# Stands before QEMU: writes down when it is executed, and becomes it.
LC_ALL=C
printf '%s %s\\n' "$EPOCHREALTIME" "$*" >>{log}
exec {qemu} "$@"
"""


class Place:
    """State in `.bench/` of the checkout; sockets under /run or $XDG_RUNTIME_DIR."""

    def __init__(self) -> None:
        self.state = ROOT / ".bench"
        self.results = self.state / "results.md"
        self.config = self.state / "agent.yaml"
        self.log = self.state / "agent.log"
        self.source = self.state / "releases"
        self.executions = self.state / "executions"
        short = hashlib.sha256(str(ROOT).encode()).hexdigest()[:6]
        runtime = os.environ.get("XDG_RUNTIME_DIR")
        base = Path("/run") if os.geteuid() == 0 else Path(runtime or f"/tmp/ea-{os.getuid()}")
        self.run = base / f"ea-bench-{short}"
        self.socket = self.run / "agent.sock"
        self.bridge = f"eab{short}"
        self.bare_bridge = f"eax{short}"
        self.namespace = f"ea-bench-{short}"
        self.scratch_table = f"ea_bench_{short}"
        self._octet = int(short[:2], 16) % 200 + 20
        self.https_port, self.plain_port, self.status_port = free_ports(3)

    @property
    def table(self) -> str:
        """The data plane's table of an agent with this bridge."""
        return f"enclave_agent_{self.bridge}"

    def subnet(self, place: int) -> str:
        """A subnet of the bench's own; 0 is the agent's."""
        return f"10.{self._octet}.{217 + place}.0/24"

    @property
    def bare_loopback(self) -> str:
        """Loopback addresses for bare VMs on a user-mode network."""
        return f"127.{self._octet}.218.0/24"

    @property
    def bare_qmp(self) -> Path:
        """Where a bare VM is spoken to; its processes have it in their arguments."""
        return self.run / "bare-qmp"

    def make(self) -> None:
        """The directories, empty but for releases, and the program that stands before QEMU."""
        for path in (self.state / "state", self.run):
            shutil.rmtree(path, ignore_errors=True)
        for path in (self.source, self.run, self.state / "state"):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.executions.write_bytes(b"")
        self.log.write_bytes(b"")
        qemu = shutil.which("qemu-system-x86_64") or "qemu-system-x86_64"
        self.wrapper.write_text(_WRAPPER.format(log=self.executions, qemu=qemu))
        self.wrapper.chmod(0o755)

    @property
    def wrapper(self) -> Path:
        return self.state / "qemu"

    def write_config(self, **sections: Any) -> None:
        """What is given, over what every bench wants; the rest is the agent's defaults."""
        body: dict[str, Any] = {
            "host_id": "bench",
            "state_dir": str(self.state / "state"),
            "run_dir": str(self.run),
            "tee": "none",
            "allow_unattested": True,
            "qemu": {"binary": str(self.wrapper)},
            "network": {
                "bridge": self.bridge,
                "subnet": self.subnet(0),
                "loopback_subnet": f"127.{self._octet}.217.0/24",
            },
            "releases": {
                "source": str(self.source),
                "cache_max_gib": 2,
                "default_domain": "enclaves.example",
            },
            "host": {"vcpus": max(3, os.cpu_count() or 1)},
            "reserve": {"memory_mib": 256, "vcpus": 0},
            "listen": {"status": f"127.0.0.1:{self.status_port}"},
        }
        for name, values in sections.items():
            body[name] = {**body.get(name, {}), **values}
        self.config.write_text(yaml.safe_dump(body, sort_keys=False))

    def deployment(self, tag: str, https: int | None = None, plain: int | None = None) -> Any:
        """The body of a request that creates a deployment of the bench's release."""
        return {
            "tag": tag,
            "repo": REPO,
            "listen": f"127.0.0.1:{https or self.https_port}",
            "publish": [{"listen": f"127.0.0.1:{plain or self.plain_port}", "guest_port": 8080}],
        }


def free_ports(count: int) -> list[int]:
    """Ports of the loopback address on which nobody listens now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports
