"""`enclave-agent status`: the host at a glance, or one deployment in full."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import click
import msgspec

from agent.cli.client import Client, segment
from agent.cli.completion import DEPLOYMENT
from agent.cli.exits import Exit, Failure
from agent.cli.options import Output, output
from agent.cli.session import session

if TYPE_CHECKING:
    from rich.console import RenderableType

_EVERY_S = 0.25


@click.command()
@click.argument("name", required=False, type=DEPLOYMENT)
@output
@click.option("--watch", is_flag=True, help="Go on showing it, until interrupted.")
def status(name: str | None, output: Output, watch: bool) -> None:
    """Show the host, its deployments and what is wrong."""
    client = session().client()
    if watch:
        _watch(client, name, output)
    elif output.for_programs:
        from agent.cli.screen import show_json, show_json_lines

        if output.by_line and name is None:
            show_json_lines(client.read("/v1/deployments", _Rows).deployments)
        else:
            show_json(client.read_bytes(_path(name)), one_line=output.by_line)
    else:
        from agent.cli.screen import show

        show(_page(client, name), output)


class _Rows(msgspec.Struct):
    """The deployments as the agent gave them."""

    deployments: list[msgspec.Raw]


def _path(name: str | None) -> str:
    return "/status" if name is None else f"/v1/deployments/{segment(name)}"


def _page(client: Client, name: str | None) -> RenderableType:
    if name is None:
        from agent.cli.overview import overview
        from agent.wire.host_views import StatusView

        return overview(client.read("/status", StatusView))
    from agent.cli.detail import detail
    from agent.wire.views import DeploymentView

    return detail(client.read(_path(name), DeploymentView))


def _watch(client: Client, name: str | None, output: Output) -> None:
    from agent.cli.screen import on_terminal, plain
    from agent.cli.text import escaped_json

    if output.for_programs:
        _watch_lines(lambda: escaped_json(client.read_bytes(_path(name)).decode()))
    elif on_terminal():
        _watch_live(client, name, output)
    else:
        _watch_lines(lambda: plain(_page(client, name), output))


def _watch_lines(look: Callable[[], str]) -> None:
    """Again whenever it changed. An agent that was there and is being replaced is waited for."""
    before, away = None, False
    while True:
        try:
            now = look()
        except Failure as failure:
            if failure.exit_code != Exit.UNREACHABLE or before is None:
                raise
            if not away:
                click.echo(f"{failure.message}; waiting for it", err=True)
            away = True
        else:
            if away:
                click.echo("the agent is back", err=True)
            away = False
            if now != before:
                click.echo(now)
            before = now
        time.sleep(_EVERY_S)


def _watch_live(client: Client, name: str | None, output: Output) -> None:
    """An agent that is being replaced is waited for; the page says so meanwhile."""
    from rich.live import Live
    from rich.text import Text

    from agent.cli.screen import terminal

    with Live(console=terminal(output), auto_refresh=False, screen=True) as live:
        while True:
            try:
                page = _page(client, name)
            except Failure as failure:
                if failure.exit_code != Exit.UNREACHABLE:
                    raise
                page = Text(f"{failure.message}; trying again", style="yellow")
            live.update(page, refresh=True)
            time.sleep(_EVERY_S)
