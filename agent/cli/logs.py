"""`enclave-agent logs`: the console of an enclave.

Production images have none, and that is said; debug releases print on hvc0. Control characters
that the guest printed are shown and not obeyed, also by whoever reads the file or the pipe that
they go into; `--raw` gives the guest's bytes as they are.
"""

from __future__ import annotations

import sys
import time

import click

from agent.cli.client import Client, segment
from agent.cli.completion import DEPLOYMENT
from agent.cli.exits import Exit, Failure
from agent.cli.names import chosen_enclave
from agent.cli.overlap import news
from agent.cli.session import session
from agent.cli.text import moment_ago, safe, safe_lines
from agent.model.ids import parse_deployment_name
from agent.wire.answers import EndedConsoles, EndedConsoleView
from agent.wire.views import DeploymentView, EnclaveView

_EVERY_S = 0.5
_WINDOW = 256 * 1024
_MAX = 8 * 1024 * 1024
_NO_CONSOLE = "its image prints nothing: production images have no console, debug releases have"


@click.command()
@click.argument("name", type=DEPLOYMENT)
@click.option("--slot", type=click.Choice(["blue", "green"]), help="[the one that serves]")
@click.option("--tail", type=click.IntRange(0), metavar="LINES", help="Only the last lines.")
@click.option("--follow", "-f", is_flag=True, help="Go on with what it prints.")
@click.option("--raw", is_flag=True, help="The guest's own bytes: they may steer your terminal.")
@click.option(
    "--previous", "-p", is_flag=True, help="Of the newest enclave that is gone, deleted or not."
)
def logs(  # noqa: PLR0917 - click passes them by name
    name: str, slot: str | None, tail: int | None, follow: bool, raw: bool, previous: bool
) -> None:
    """Show the console of a deployment's enclave.

    NAME may be an enclave's id too, or the beginning of one.
    """
    client = session().client()
    if previous:
        if follow:
            raise click.UsageError(
                "--previous and --follow: nothing more comes of one that is gone"
            )
        _show_ended(client, name, slot, tail, raw=raw)
        return
    deployment, enclave = chosen_enclave(client, name)
    if enclave is not None and slot is not None:
        raise click.UsageError("--slot is for a deployment: an enclave has one")
    enclave = enclave or _choose(deployment, slot)
    if enclave is None:
        if _ended(client, deployment.name, slot):
            told = f"no enclave of {deployment.name} runs; this is the last one's:"
            click.echo(told, err=True)
            _show_ended(client, deployment.name, slot, tail, raw=raw)
        else:
            _show_kept(deployment, slot, raw=raw)
        return
    path = f"/v1/enclaves/{enclave.id}/console?tail="
    text = client.read_bytes(f"{path}{_MAX}").decode()
    if not text and not enclave.debug:
        click.echo(f"{name}: {_NO_CONSOLE}", err=True)
    _print(_last(text, tail), raw=raw)
    if follow:
        _follow(client, f"{path}{_WINDOW}", text[-_WINDOW:], raw=raw)


def _last(text: str, count: int | None) -> str:
    """The last so many lines, as a line feed ends them."""
    if count is None:
        return text
    *whole, rest = text.split("\n")
    lines = [f"{line}\n" for line in whole] + ([rest] if rest else [])
    return "".join(lines[max(0, len(lines) - count) :])


def _choose(deployment: DeploymentView, slot: str | None) -> EnclaveView | None:
    """The slot that was asked for; else the one that serves; else the newest."""
    wanted = slot or deployment.active_slot
    for one in deployment.enclaves:
        if one.slot == wanted:
            return one
    if slot is not None or not deployment.enclaves:
        return None
    return max(deployment.enclaves, key=lambda one: one.revision)


def _ended(client: Client, name: str, slot: str | None) -> list[EndedConsoleView]:
    """Those that are kept, the newest first; none where nothing could be called so."""
    try:
        parse_deployment_name(name)
    except ValueError:
        return []
    found = client.read(f"/v1/consoles?deployment={segment(name)}", EndedConsoles).consoles
    return [one for one in found if slot in (None, one.slot)]


def _show_ended(
    client: Client, name: str, slot: str | None, tail: int | None, *, raw: bool
) -> None:
    """Of the newest that is gone, with whose it was."""
    found = _ended(client, name, slot)
    if not found:
        raise Failure(Exit.FAILED, f"no console of {name} is kept", [f"perhaps {_NO_CONSOLE}"])
    one = found[0]
    told = f"enclave {one.enclave} ({one.slot}, {one.tag}, revision {one.revision})"
    click.echo(safe(f"{told}, last heard {moment_ago(one.ended_at)}"), err=True)
    text = client.read_bytes(f"/v1/enclaves/{one.enclave}/console?tail={_MAX}").decode()
    _print(_last(text, tail), raw=raw)


def _show_kept(deployment: DeploymentView, slot: str | None, *, raw: bool) -> None:
    """No enclave: what its end left behind, if anything."""
    update = deployment.update
    fault = deployment.error or (update.error if update else None)
    where = f"slot {slot} of {deployment.name}" if slot else deployment.name
    if slot is not None or fault is None or fault.console_tail is None:
        raise Failure(Exit.FAILED, f"no enclave runs in {where}")
    if not fault.console_tail and not deployment.debug:
        raise Failure(Exit.FAILED, f"no enclave of {where} runs, and {_NO_CONSOLE}")
    click.echo(f"no enclave of {where} runs; this is the end of the last one's:", err=True)
    _print(fault.console_tail, raw=raw)


def _follow(client: Client, path: str, seen: str, *, raw: bool) -> None:
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
        _print(fresh, raw=raw)
        seen = now


def _print(text: str, *, raw: bool) -> None:
    if not raw:
        click.echo(safe_lines(text), nl=False)
        return
    sys.stdout.buffer.write(text.encode())
    sys.stdout.buffer.flush()
