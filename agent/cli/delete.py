"""`enclave-agent delete`."""

from __future__ import annotations

import click

from agent.cli.options import waiting
from agent.cli.session import session


@click.command()
@click.argument("name")
@waiting
def delete(name: str, wait: bool, timeout_s: float | None) -> None:
    """Remove a deployment and its enclaves."""
    from agent.cli.client import segment
    from agent.cli.waiting import wait_until
    from agent.wire.answers import DeploymentAnswer

    client = session().client()
    client.send("DELETE", f"/v1/deployments/{segment(name)}", None, DeploymentAnswer)
    if wait:
        wait_until(client, name, lambda one: one is None, timeout_s)
        click.echo(f"{name} is deleted")
    else:
        click.echo(f"{name} is being deleted")
