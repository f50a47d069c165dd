"""`enclave-agent coordinator-epoch reset`: on the host alone, and in the chain of events."""

from __future__ import annotations

import click

from agent.cli.options import Output, result
from agent.cli.session import session


@click.group(name="coordinator-epoch")
def coordinator_epoch() -> None:
    """Let a coordinator in that was restored from a backup."""


@coordinator_epoch.command()
@result
def reset(output: Output) -> None:
    """Forget the highest epoch that was seen: the next one counts, whatever it is."""
    from agent.cli.screen import tell
    from agent.wire.answers import EpochReset

    path = "/v1/host/coordinator-epoch/reset"
    answer = session().client().send("POST", path, None, EpochReset)
    told = "no epoch was seen yet: nothing to forget"
    if answer.forgotten:
        told = (
            f"epoch {answer.forgotten} is forgotten: the next coordinator's counts, whatever it is"
        )
    tell(answer, output, told)
