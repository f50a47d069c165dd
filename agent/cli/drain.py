"""`enclave-agent drain` and `undrain`."""

from __future__ import annotations

import click

from agent.cli.session import session


@click.command()
def drain() -> None:
    """Admit nothing new on this host."""
    _set("drain")
    click.echo("the host drains: nothing new is admitted, enclaves keep running")


@click.command()
def undrain() -> None:
    """Admit again."""
    _set("undrain")
    click.echo("the host admits again")


def _set(verb: str) -> None:
    from agent.wire.answers import Draining

    session().client().send("POST", f"/v1/host/{verb}", None, Draining)
