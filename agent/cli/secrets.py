"""`enclave-agent secrets list|set|unset`."""

from __future__ import annotations

from collections.abc import Mapping

import click

from agent.cli.completion import DEPLOYMENT
from agent.cli.options import Output, output, result
from agent.cli.session import session


@click.group()
def secrets() -> None:
    """Show, give and take away a deployment's secrets."""


@secrets.command(name="list")
@click.argument("name", type=DEPLOYMENT)
@output
def list_(name: str, output: Output) -> None:
    """Show the names of its secrets, and how each stands; never a value."""
    from agent.cli.client import segment
    from agent.cli.screen import say, show, show_json, show_json_lines, table
    from agent.cli.tables import Column, prose
    from agent.cli.text import safe
    from agent.wire.answers import Secrets

    path = f"/v1/deployments/{segment(name)}/secrets"
    found = session().client().read(path, Secrets).secrets
    if output.by_line:
        show_json_lines(found)
    elif output.for_programs:
        show_json({"secrets": found})
    elif not found:
        say(f"{name} has no secrets")
    else:
        rows = table(Column("SECRET"), Column("RECORDED"), Column("GIVEN", 1), prose("HOW", 2))
        for one in found:
            recorded, given = one.version, one.given
            rows.add_row(
                safe(one.name),
                "-" if recorded is None else f"version {recorded}",
                "-" if given is None else f"version {given}",
                safe(one.how),
            )
        show(rows, output)


@secrets.command(name="set")
@click.argument("name", type=DEPLOYMENT)
@click.argument("entries", nargs=-1, required=True, metavar="K=@FILE|K=-...")
@result
def set_(name: str, entries: tuple[str, ...], output: Output) -> None:
    """Record new values; restarts nothing. One line end at a value's end is cut."""
    from agent.cli.values import read_secrets

    values = read_secrets(entries)
    _put(name, values, f"{name}: {', '.join(sorted(values))} recorded", output)


@secrets.command()
@click.argument("name", type=DEPLOYMENT)
@click.argument("names", nargs=-1, required=True, metavar="K...")
@result
def unset(name: str, names: tuple[str, ...], output: Output) -> None:
    """Forget secrets; what runs keeps what it was given until a relaunch."""
    from agent.cli.client import segment
    from agent.cli.exits import Exit, Failure
    from agent.cli.names import hint
    from agent.cli.values import parse_names
    from agent.wire.answers import Secrets

    gone = parse_names("secret", names)
    path = f"/v1/deployments/{segment(name)}/secrets"
    known = [one.name for one in session().client().read(path, Secrets).secrets]
    for one in gone:
        if one not in known:
            told = hint(one, known, "secrets")
            raise Failure(Exit.UNKNOWN_NAME, f"{name} has no secret '{one}'", told)
    _put(name, dict.fromkeys(gone), f"{name}: {', '.join(gone)} forgotten", output)


def _put(name: str, values: Mapping[str, str | None], told: str, output: Output) -> None:
    from agent.cli.client import segment
    from agent.cli.screen import tell
    from agent.wire.answers import StaleSecrets

    path = f"/v1/deployments/{segment(name)}/secrets"
    answer = session().client().send("PUT", path, values, StaleSecrets)
    stale = ", ".join(answer.stale_secrets)
    then = f"what runs has another value of {stale}: enclave-agent relaunch {name}"
    tell(answer, output, told, *([then] if stale else []))
