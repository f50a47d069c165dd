"""`enclave-agent coordinator-epoch reset`: on the host alone, and in the chain of events."""

from __future__ import annotations

import click

from agent.cli.session import session


@click.group(name="coordinator-epoch")
def coordinator_epoch() -> None:
    """Let a coordinator in that was restored from a backup."""


@coordinator_epoch.command()
def reset() -> None:
    """Forget the highest epoch that was seen: the next one counts, whatever it is."""
    from agent.wire.answers import EpochReset

    path = "/v1/host/coordinator-epoch/reset"
    forgotten = session().client().send("POST", path, None, EpochReset).forgotten
    if forgotten:
        click.echo(
            f"epoch {forgotten} is forgotten: the next coordinator's counts, whatever it is"
        )
    else:
        click.echo("no epoch was seen yet: nothing to forget")
