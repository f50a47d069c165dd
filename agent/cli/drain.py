"""`enclave-agent drain` and `undrain`."""

from __future__ import annotations

import click

from agent.cli.options import Output, result
from agent.cli.session import session


@click.command()
@result
def drain(output: Output) -> None:
    """Admit nothing new on this host."""
    _set("drain", output, "the host drains: nothing new is admitted, enclaves keep running")


@click.command()
@result
def undrain(output: Output) -> None:
    """Admit again."""
    _set("undrain", output, "the host admits again")


def _set(verb: str, output: Output, told: str) -> None:
    from agent.cli.screen import tell
    from agent.wire.answers import Draining

    answer = session().client().send("POST", f"/v1/host/{verb}", None, Draining)
    tell(answer, output, told)
