"""What the global options say: where the agent is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from agent.cli.client import Client
    from agent.cli.reach import Reach

DEFAULT_CONFIG = Path("/etc/enclave-agent/agent.yaml")
DEFAULT_SOCKET = Path("/run/enclave-agent/agent.sock")
_OVERRIDES = ("ENCLAVE_AGENT_RUN_DIR", "ENCLAVE_AGENT_LISTEN__SOCKET")


@dataclass(slots=True)
class CliSession:
    """One run of the command line."""

    config: Path | None = None
    socket: Path | None = None
    url: str | None = None
    certificate: Path | None = None
    key: Path | None = None
    ca: Path | None = None
    host_id: str | None = None
    epoch: int | None = None

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> CliSession:
        """From the values of the global options."""
        return cls(**{one.name: options.get(one.name) for one in fields(cls)})

    def client(self, timeout_s: float | None = None) -> Client:
        """A client of the agent. Connects only when something is asked. Raises Failure USAGE."""
        from agent.cli.client import TIMEOUT_S, Client

        return Client(self._reach(), timeout_s or TIMEOUT_S)

    def _reach(self) -> Path | Reach:
        if self.url is None:
            return self.socket or self._configured_socket()
        from agent.cli.reach import Remote

        if self.socket is not None:
            raise click.UsageError("--url and --socket: an agent is reached by one of them")
        reach = Remote.of(self.url, certificate=self.certificate, key=self.key, ca=self.ca)
        return replace(reach, host_id=self.host_id, epoch=self.epoch)

    @property
    def config_path(self) -> Path | None:
        """The configuration file, if there is one."""
        if self.config is not None:
            return self.config
        return DEFAULT_CONFIG if DEFAULT_CONFIG.exists() else None

    def _configured_socket(self) -> Path:
        """Without a configuration the default, and no YAML library loaded for it."""
        path = self.config_path
        if self.config is None and path is not None and not os.access(path, os.R_OK):
            return DEFAULT_SOCKET  # it is root's to read; who may use the socket need not
        if path is None and not any(name in os.environ for name in _OVERRIDES):
            return DEFAULT_SOCKET
        from agent.cli.check_config import load

        config = load(path)
        return config.listen.socket or config.run_dir / "agent.sock"


def session() -> CliSession:
    """Of the command that runs."""
    found = click.get_current_context().find_object(CliSession)
    assert found is not None
    return found
