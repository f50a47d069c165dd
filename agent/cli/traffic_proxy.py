"""`enclave-agent traffic-proxy`: the userspace data plane's own process, or the holder of ports.

The agent starts it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click


@click.command("traffic-proxy", hidden=True)
@click.option("--socket", "socket_path", type=click.Path(path_type=Path), required=True)
@click.option("--state", "state_file", type=click.Path(path_type=Path), required=True)
@click.option("--log", "log_file", type=click.Path(path_type=Path), help="Detach, and log there.")
def traffic_proxy(socket_path: Path, state_file: Path, log_file: Path | None) -> None:
    """Relay the connections of deployments to their enclaves."""
    from agent.traffic.proxy.process import main

    sys.exit(main(socket_path, state_file, log_file))
