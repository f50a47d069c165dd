"""`enclave-agent stop`."""

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
def stop(name: str, output: Output, *, yes: bool, wait: bool, timeout_s: float | None) -> None:
    """Stop a deployment; it keeps its place."""
    from agent.cli.asking import ask_first
    from agent.cli.client import segment
    from agent.cli.screen import tell
    from agent.cli.standing import what_ends
    from agent.cli.waiting import wait_until
    from agent.wire.answers import DeploymentAnswer

    client = session().client()
    ask_first(lambda: f"stop {name}? {what_ends(client, name)}", yes=yes)
    path = f"/v1/deployments/{segment(name)}/stop"
    answer = client.send("POST", path, None, DeploymentAnswer)
    if wait:
        last = wait_until(client, name, lambda one: one is None or not one.enclaves, timeout_s)
        answer = DeploymentAnswer(deployment=last)
    tell(answer, output, f"{name} is stopped" if wait else f"{name} is being stopped")
