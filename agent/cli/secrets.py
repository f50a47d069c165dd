"""`enclave-agent secrets set`."""

from __future__ import annotations

import click

from agent.cli.session import session


@click.group()
def secrets() -> None:
    """Give secrets to a deployment."""


@secrets.command(name="set")
@click.argument("name")
@click.argument("entries", nargs=-1, required=True, metavar="K=@FILE|K=-...")
def set_(name: str, entries: tuple[str, ...]) -> None:
    """Record new values; restarts nothing. One line end at a value's end is cut."""
    from agent.cli.client import segment
    from agent.cli.values import read_secrets
    from agent.wire.answers import StaleSecrets

    values = read_secrets(entries)
    client = session().client()
    path = f"/v1/deployments/{segment(name)}/secrets"
    stale = client.send("PUT", path, values, StaleSecrets).stale_secrets
    click.echo(f"{name}: {', '.join(sorted(values))} recorded")
    if stale:
        click.echo(
            f"the running enclave has older values of {', '.join(stale)}: "
            f"enclave-agent relaunch {name}"
        )
