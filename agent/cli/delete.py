"""`enclave-agent delete`."""

from __future__ import annotations

import click

from agent.cli.completion import DEPLOYMENT
from agent.cli.options import Output, result, sure, waiting
from agent.cli.session import session


@click.command()
@click.argument("name", type=DEPLOYMENT)
@sure
@waiting
@result
def delete(name: str, output: Output, *, yes: bool, wait: bool, timeout_s: float | None) -> None:
    """Remove a deployment and its enclaves."""
    from agent.cli.asking import ask_first
    from agent.cli.client import segment
    from agent.cli.screen import tell
    from agent.cli.standing import what_ends
    from agent.cli.waiting import wait_until
    from agent.wire.answers import DeploymentAnswer

    client = session().client()
    forgets = "Its secrets, revisions and listeners are forgotten."
    ask_first(lambda: f"delete {name}? {what_ends(client, name)} {forgets}", yes=yes)
    answer = client.send("DELETE", f"/v1/deployments/{segment(name)}", None, DeploymentAnswer)
    if wait:
        last = wait_until(client, name, lambda one: one is None, timeout_s)
        answer = DeploymentAnswer(deployment=last)
    tell(answer, output, f"{name} is deleted" if wait else f"{name} is being deleted")
