"""`enclave-agent status`: the host at a glance, or one deployment in full."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from agent.cli.client import Client, segment
from agent.cli.exits import Exit, Failure
from agent.cli.options import output
from agent.cli.session import session

if TYPE_CHECKING:
    from rich.console import RenderableType

_EVERY_S = 0.25


@click.command()
@click.argument("name", required=False)
@output
@click.option("--watch", is_flag=True, help="Go on showing it, until interrupted.")
def status(name: str | None, output: str, watch: bool) -> None:
    """Show the host, its deployments and what is wrong."""
    client = session().client()
    if watch:
        _watch(client, name, as_json=output == "json")
    elif output == "json":
        from agent.cli.screen import show_json

        show_json(client.read_bytes(_path(name)))
    else:
        from agent.cli.screen import show

        show(_page(client, name))


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


def _watch(client: Client, name: str | None, *, as_json: bool) -> None:
    from agent.cli.screen import on_terminal, plain

    if as_json:
        _watch_lines(lambda: client.read_bytes(_path(name)).decode())
    elif on_terminal():
        _watch_live(client, name)
    else:
        _watch_lines(lambda: plain(_page(client, name)))


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


def _watch_live(client: Client, name: str | None) -> None:
    """An agent that is being replaced is waited for; the page says so meanwhile."""
    from rich.live import Live
    from rich.text import Text

    from agent.cli.screen import terminal

    with Live(console=terminal(), auto_refresh=False, screen=True) as live:
        while True:
            try:
                page = _page(client, name)
            except Failure as failure:
                if failure.exit_code != Exit.UNREACHABLE:
                    raise
                page = Text(f"{failure.message}; trying again", style="yellow")
            live.update(page, refresh=True)
            time.sleep(_EVERY_S)
