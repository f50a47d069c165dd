"""`enclave-agent stop`."""

from __future__ import annotations

import click

from agent.cli.options import waiting
from agent.cli.session import session


@click.command()
@click.argument("name")
@waiting
def stop(name: str, wait: bool, timeout_s: float | None) -> None:
    """Stop a deployment; it keeps its place."""
    from agent.cli.client import segment
    from agent.cli.waiting import wait_until
    from agent.wire.answers import DeploymentAnswer

    client = session().client()
    client.send("POST", f"/v1/deployments/{segment(name)}/stop", None, DeploymentAnswer)
    if wait:
        wait_until(client, name, lambda one: one is None or not one.enclaves, timeout_s)
        click.echo(f"{name} is stopped")
    else:
        click.echo(f"{name} is being stopped")
