"""`enclave-agent rollback`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from agent.cli.options import output, waiting
from agent.cli.session import session

if TYPE_CHECKING:
    from agent.cli.client import Client
    from agent.wire.views import DeploymentView


@click.command()
@click.argument("name")
@click.option(
    "--to", metavar="TAG|REVISION", help="Where to. [the version before the one that serves]"
)
@click.option("--list", "listing", is_flag=True, help="Say where it could go; change nothing.")
@output
@waiting
def rollback(
    name: str,
    to: str | None,
    *,
    listing: bool,
    output: str,
    wait: bool,
    timeout_s: float | None,
) -> None:
    """Go back to an older revision.

    To the version before the one that serves, if none is named: never to one that somebody went
    back from.
    """
    from agent.cli.client import segment
    from agent.cli.waiting import follow_up
    from agent.wire.requests import RollbackRequest
    from agent.wire.views import UpdateView

    client = session().client()
    if listing:
        if to is not None or wait:
            raise click.UsageError("--list changes nothing: it takes neither --to nor --wait")
        _list(client, name, as_json=output == "json")
        return
    if output == "json":
        raise click.UsageError("-o json is for --list")
    numeric = to is not None and to.isascii() and to.isdigit()
    target = int(to) if to is not None and numeric else to
    path = f"/v1/deployments/{segment(name)}/rollback"
    made = client.send("POST", path, RollbackRequest(to=target), UpdateView)
    follow_up(client, made, wait=wait, timeout_s=timeout_s)


def _list(client: Client, name: str, *, as_json: bool) -> None:
    import msgspec

    from agent.cli.client import segment
    from agent.cli.detail import rollback_table
    from agent.cli.screen import show, show_json
    from agent.wire.views import DeploymentView

    view = client.read(f"/v1/deployments/{segment(name)}", DeploymentView)
    if as_json:
        show_json(msgspec.json.encode(view.rollback))
        return
    if view.rollback:
        show(rollback_table(view.rollback))
    click.echo(_default(view))


def _default(view: DeploymentView) -> str:
    to = next((one for one in view.rollback if one.default), None)
    serves = f"{view.name} serves {view.tag}, revision {view.revision}"
    if to is None:
        return f"{serves}: no version served before it"
    return f"{serves}: `rollback {view.name}` goes to {to.tag}, revision {to.revision}"
