"""`enclave-agent run`: the daemon. Nothing of it is imported for any other verb."""

from __future__ import annotations

import sys

import click

from agent.cli.session import session


@click.command()
def run() -> None:
    """Run the daemon."""
    from agent import daemon

    sys.exit(daemon.main(session().config_path))
