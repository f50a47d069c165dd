"""`enclave-agent rollback`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from agent.cli.completion import DEPLOYMENT
from agent.cli.options import Output, output, waiting
from agent.cli.session import session

if TYPE_CHECKING:
    from agent.cli.client import Client
    from agent.wire.views import DeploymentView


@click.command()
@click.argument("name", type=DEPLOYMENT)
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
    output: Output,
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
        _list(client, name, output)
        return
    numeric = to is not None and to.isascii() and to.isdigit()
    target = int(to) if to is not None and numeric else to
    path = f"/v1/deployments/{segment(name)}/rollback"
    made = client.send("POST", path, RollbackRequest(to=target), UpdateView)
    follow_up(client, made, wait=wait, timeout_s=timeout_s, output=output)


def _list(client: Client, name: str, output: Output) -> None:
    from agent.cli.client import segment
    from agent.cli.detail import rollback_table
    from agent.cli.screen import say, show, show_json, show_json_lines
    from agent.wire.views import DeploymentView

    view = client.read(f"/v1/deployments/{segment(name)}", DeploymentView)
    if output.by_line:
        show_json_lines(view.rollback)
    elif output.for_programs:
        show_json(view.rollback)
    else:
        if view.rollback:
            show(rollback_table(view.rollback), output)
        say(_default(view))


def _default(view: DeploymentView) -> str:
    to = next((one for one in view.rollback if one.default), None)
    serves = f"{view.name} serves {view.tag}, revision {view.revision}"
    if to is None:
        return f"{serves}: no version served before it"
    return f"{serves}: `rollback {view.name}` goes to {to.tag}, revision {to.revision}"
