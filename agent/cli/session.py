"""What the global options say: where the agent is."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from agent.cli.client import Client

DEFAULT_CONFIG = Path("/etc/enclave-agent/agent.yaml")
DEFAULT_SOCKET = Path("/run/enclave-agent/agent.sock")
_OVERRIDES = ("ENCLAVE_AGENT_RUN_DIR", "ENCLAVE_AGENT_LISTEN__SOCKET")


@dataclass(slots=True)
class CliSession:
    """One run of the command line."""

    config: Path | None
    socket: Path | None

    def client(self, timeout_s: float | None = None) -> Client:
        """A client of the agent. Connects only when something is asked."""
        from agent.cli.client import TIMEOUT_S, Client

        return Client(self.socket or self._configured_socket(), timeout_s or TIMEOUT_S)

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
