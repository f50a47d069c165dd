"""`enclave-agent rollback`."""

from __future__ import annotations

import click

from agent.cli.options import waiting
from agent.cli.session import session


@click.command()
@click.argument("name")
@click.option("--to", metavar="TAG|REVISION", help="Where to. [the revision before]")
@waiting
def rollback(name: str, to: str | None, wait: bool, timeout_s: float | None) -> None:
    """Go back to an older revision."""
    from agent.cli.client import segment
    from agent.cli.waiting import follow_up
    from agent.wire.requests import RollbackRequest
    from agent.wire.views import UpdateView

    numeric = to is not None and to.isascii() and to.isdigit()
    target = int(to) if to is not None and numeric else to
    client = session().client()
    path = f"/v1/deployments/{segment(name)}/rollback"
    made = client.send("POST", path, RollbackRequest(to=target), UpdateView)
    follow_up(client, made, wait=wait, timeout_s=timeout_s)
