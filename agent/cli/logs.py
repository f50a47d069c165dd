"""`enclave-agent logs`: the console of an enclave.

Production images have none, and that is said; debug releases print on hvc0. On a terminal, control
characters that the guest printed are shown and not obeyed; into a file or a pipe they go as they
are.
"""

from __future__ import annotations

import sys
import time

import click

from agent.cli.client import Client, segment
from agent.cli.exits import Exit, Failure
from agent.cli.overlap import news
from agent.cli.screen import on_terminal
from agent.cli.session import session
from agent.cli.text import safe_lines
from agent.wire.views import DeploymentView, EnclaveView

_EVERY_S = 0.5
_WINDOW = 256 * 1024
_MAX = 8 * 1024 * 1024
_NO_CONSOLE = "its image prints nothing: production images have no console, debug releases have"


@click.command()
@click.argument("name")
@click.option("--slot", type=click.Choice(["blue", "green"]), help="[the one that serves]")
@click.option("--tail", type=click.IntRange(0), metavar="LINES", help="Only the last lines.")
@click.option("--follow", "-f", is_flag=True, help="Go on with what it prints.")
def logs(name: str, slot: str | None, tail: int | None, follow: bool) -> None:
    """Show the console of a deployment's enclave."""
    client = session().client()
    deployment = client.read(f"/v1/deployments/{segment(name)}", DeploymentView)
    enclave = _choose(deployment, slot)
    if enclave is None:
        _show_kept(deployment, slot)
        return
    path = f"/v1/enclaves/{enclave.id}/console?tail="
    text = client.read_bytes(f"{path}{_MAX}").decode()
    if not text and not enclave.debug:
        click.echo(f"{name}: {_NO_CONSOLE}", err=True)
    lines = text.splitlines(keepends=True)
    _print("".join(lines[len(lines) - tail :]) if tail is not None and tail < len(lines) else text)
    if follow:
        _follow(client, f"{path}{_WINDOW}", text[-_WINDOW:])


def _choose(deployment: DeploymentView, slot: str | None) -> EnclaveView | None:
    """The slot that was asked for; else the one that serves; else the newest."""
    wanted = slot or deployment.active_slot
    for one in deployment.enclaves:
        if one.slot == wanted:
            return one
    if slot is not None or not deployment.enclaves:
        return None
    return max(deployment.enclaves, key=lambda one: one.revision)


def _show_kept(deployment: DeploymentView, slot: str | None) -> None:
    """No enclave: what its end left behind, if anything."""
    update = deployment.update
    fault = deployment.error or (update.error if update else None)
    where = f"slot {slot} of {deployment.name}" if slot else deployment.name
    if slot is not None or fault is None or fault.console_tail is None:
        raise Failure(Exit.FAILED, f"no enclave runs in {where}")
    if not fault.console_tail and not deployment.debug:
        raise Failure(Exit.FAILED, f"no enclave of {where} runs, and {_NO_CONSOLE}")
    click.echo(f"no enclave of {where} runs; this is the end of the last one's:", err=True)
    _print(fault.console_tail)


def _follow(client: Client, path: str, seen: str) -> None:
    """Until the enclave is gone."""
    while True:
        time.sleep(_EVERY_S)
        try:
            now = client.read_bytes(path).decode()
        except Failure as failure:
            if failure.exit_code != Exit.UNKNOWN_NAME:
                raise
            click.echo("the enclave is gone", err=True)
            return
        fresh = news(seen, now)
        if fresh is None:
            click.echo("[... some of it was missed ...]", err=True)
            fresh = now
        _print(fresh)
        seen = now


def _print(text: str) -> None:
    if on_terminal():
        click.echo(safe_lines(text), nl=False)
        return
    sys.stdout.buffer.write(text.encode())
    sys.stdout.buffer.flush()
