"""`enclave-agent update status|accept|cancel|retry`."""

from __future__ import annotations

import click

from agent.cli.client import Client, segment
from agent.cli.options import output, waiting
from agent.cli.session import session
from agent.wire.views import UpdateView


@click.group()
def update() -> None:
    """Watch or steer the update of a deployment."""


@update.command()
@click.argument("name")
@output
@waiting
def status(name: str, output: str, wait: bool, timeout_s: float | None) -> None:
    """Show the running update, or the newest."""
    client = session().client()
    if wait:
        from agent.cli.waiting import wait_for_update

        wait_for_update(client, client.read(_path(name), UpdateView), timeout_s)
    elif output == "json":
        from agent.cli.screen import show_json

        show_json(client.read_bytes(_path(name)))
    else:
        from rich.console import Group

        from agent.cli.detail import update_block
        from agent.cli.screen import show

        show(Group(*update_block(client.read(_path(name), UpdateView))))


@update.command()
@click.argument("name")
@waiting
def accept(name: str, wait: bool, timeout_s: float | None) -> None:
    """Let a staged update go on."""
    client = session().client()
    _steered(client, _steer(client, name, "accept"), "accepted", wait=wait, timeout_s=timeout_s)


@update.command()
@click.argument("name")
def cancel(name: str) -> None:
    """Call the running update off, before it touched anything old."""
    client = session().client()
    _steered(client, _steer(client, name, "cancel"), "is being cancelled")


@update.command()
@click.argument("name")
@waiting
def retry(name: str, wait: bool, timeout_s: float | None) -> None:
    """Do the failed update again, as a new one."""
    from agent.cli.waiting import follow_up

    client = session().client()
    follow_up(client, _steer(client, name, "retry"), wait=wait, timeout_s=timeout_s)


def _path(name: str) -> str:
    return f"/v1/deployments/{segment(name)}/updates/current"


def _steer(client: Client, name: str, verb: str) -> UpdateView:
    return client.send("POST", f"{_path(name)}/{verb}", None, UpdateView)


def _steered(
    client: Client,
    made: UpdateView,
    what: str,
    *,
    wait: bool = False,
    timeout_s: float | None = None,
) -> None:
    click.echo(f"{made.deployment}: update {made.id} to {made.tag} {what}")
    if wait:
        from agent.cli.waiting import wait_for_update

        wait_for_update(client, made, timeout_s)
