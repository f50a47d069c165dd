"""What of a deployment serves at this moment, in a sentence for who is about to end it."""

from __future__ import annotations

from agent.cli.client import Client, segment
from agent.wire.views import DeploymentView


def what_ends(client: Client, name: str) -> str:
    """`v1.0.0 serves on 127.0.0.1:8443, 3 connections are open.` Raises Failure UNKNOWN_NAME."""
    one = client.read(f"/v1/deployments/{segment(name)}", DeploymentView)
    if not one.enclaves:
        return "Nothing of it runs."
    serving = next((each for each in one.enclaves if each.slot == one.active_slot), None)
    if serving is None:
        return "Nothing of it serves yet."
    count = serving.connections
    opened = "" if count is None else f", {count} connection{'' if count == 1 else 's'} open"
    return f"{one.tag} serves on {one.listen}{opened}."
