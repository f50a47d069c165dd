"""`enclave-agent update status|list|accept|cancel|retry`."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from agent.cli.client import Client, segment
from agent.cli.completion import DEPLOYMENT
from agent.cli.options import Output, output, result, waiting
from agent.cli.screen import say, show_json
from agent.cli.session import session
from agent.wire.answers import Updates
from agent.wire.views import UpdateView


@click.group()
def update() -> None:
    """Watch or steer the update of a deployment."""


@update.command()
@click.argument("name", type=DEPLOYMENT)
@click.option("--id", "wanted", metavar="ID", help="An older one, by the beginning of its id.")
@output
@waiting
def status(
    name: str, wanted: str | None, output: Output, wait: bool, timeout_s: float | None
) -> None:
    """Show the running update, or the newest."""
    client = session().client()
    found = _one(client, name, wanted)
    if wait:
        from agent.cli.waiting import wait_for_update

        wait_for_update(client, found, timeout_s, output)
    elif output.for_programs:
        show_json(found, one_line=output.by_line)
    else:
        from rich.console import Group

        from agent.cli.detail import update_block
        from agent.cli.screen import show

        show(Group(*update_block(found)), output)


@update.command(name="list")
@click.argument("name", type=DEPLOYMENT)
@output
def list_(name: str, output: Output) -> None:
    """Show the updates that a deployment has had, the newest first."""
    from agent.cli.screen import show, show_json_lines
    from agent.cli.updates import updates_table

    found = session().client().read(f"{_updates(name)}", Updates)
    if output.by_line:
        show_json_lines(found.updates)
    elif output.for_programs:
        show_json(found)
    else:
        show(updates_table(found.updates), output)


@update.command()
@click.argument("name", type=DEPLOYMENT)
@waiting
@result
def accept(name: str, output: Output, wait: bool, timeout_s: float | None) -> None:
    """Let a staged update go on."""
    _steered(name, "accept", "accepted", output, wait=wait, timeout_s=timeout_s)


@update.command()
@click.argument("name", type=DEPLOYMENT)
@result
def cancel(name: str, output: Output) -> None:
    """Call the running update off, before it touched anything old.

    A request that still waits for its release is called off as well.
    """
    from agent.cli.waiting import follow_up

    client = session().client()
    answer = client.send("POST", f"{_updates(name)}/current/cancel", None, dict[str, Any])
    if "id" in answer:
        made = msgspec.convert(answer, UpdateView)
        done = f"{name}: update {made.id} to {made.tag} is being cancelled"
        follow_up(client, made, wait=False, timeout_s=None, output=output, done=done)
    elif output.for_programs:
        show_json(answer, one_line=output.by_line)
    else:
        say(f"{name}: what waited to be admitted is called off; nothing was changed")


@update.command()
@click.argument("name", type=DEPLOYMENT)
@waiting
@result
def retry(name: str, output: Output, wait: bool, timeout_s: float | None) -> None:
    """Do the failed update again, as a new one."""
    from agent.cli.waiting import follow_up

    client = session().client()
    made = _steer(client, name, "retry")
    follow_up(client, made, wait=wait, timeout_s=timeout_s, output=output)


def _updates(name: str) -> str:
    return f"/v1/deployments/{segment(name)}/updates"


def _one(client: Client, name: str, wanted: str | None) -> UpdateView:
    if wanted is None:
        return client.read(f"{_updates(name)}/current", UpdateView)
    from agent.cli.names import whole_id

    found = {one.id: one for one in client.read(_updates(name), Updates).updates}
    return found[whole_id(wanted, found.keys(), "updates")]


def _steer(client: Client, name: str, verb: str) -> UpdateView:
    return client.send("POST", f"{_updates(name)}/current/{verb}", None, UpdateView)


def _steered(
    name: str,
    verb: str,
    what: str,
    output: Output,
    *,
    wait: bool = False,
    timeout_s: float | None = None,
) -> None:
    from agent.cli.waiting import follow_up

    client = session().client()
    made = _steer(client, name, verb)
    done = f"{made.deployment}: update {made.id} to {made.tag} {what}"
    follow_up(client, made, wait=wait, timeout_s=timeout_s, output=output, done=done)
