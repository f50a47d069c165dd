"""`enclave-agent start`."""

from __future__ import annotations

import click

from agent.cli.completion import DEPLOYMENT
from agent.cli.options import Output, result, waiting
from agent.cli.session import session


@click.command()
@click.argument("name", type=DEPLOYMENT)
@waiting
@result
def start(name: str, output: Output, wait: bool, timeout_s: float | None) -> None:
    """Start a stopped deployment."""
    from agent.cli.client import segment
    from agent.cli.waiting import follow_up
    from agent.wire.views import UpdateView

    client = session().client()
    made = client.send("POST", f"/v1/deployments/{segment(name)}/start", None, UpdateView)
    follow_up(client, made, wait=wait, timeout_s=timeout_s, output=output)
