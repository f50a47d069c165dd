"""`enclave-agent plan`: what an update would be, without doing it."""

from __future__ import annotations

from collections.abc import Iterable

import click
from msgspec import UNSET, UnsetType

from agent.cli.client import Client, reason_text
from agent.cli.exits import Exit, Failure
from agent.cli.options import STRATEGIES, output
from agent.cli.session import session
from agent.model.reasons import DecidedStrategy, Strategy
from agent.wire.requests import PlanRequest, ProbesChange
from agent.wire.views import DecisionView


@click.command()
@click.argument("name")
@click.option("--tag", metavar="T", help="The release. [the same]")
@click.option("--strategy", type=STRATEGIES, help="Insist on it. [what fits]")
@click.option("--staging", is_flag=True, help="As if staged.")
@output
def plan(name: str, tag: str | None, strategy: str | None, staging: bool, output: str) -> None:
    """Say what an update would be; changes nothing."""
    wanted = Strategy(strategy) if strategy else UNSET
    ask(
        session().client(),
        name,
        tag=tag,
        strategy=wanted,
        staging=staging,
        as_json=output == "json",
    )


def ask(
    client: Client,
    name: str,
    *,
    tag: str | None,
    strategy: Strategy | UnsetType,
    staging: bool,
    variables: Iterable[str] = (),
    secrets: Iterable[str] = (),
    probes: ProbesChange | UnsetType = UNSET,
    as_json: bool = False,
) -> None:
    """Show the decision; one that refuses ends the command as refused."""
    body = PlanRequest(
        deployment=name,
        tag=tag or UNSET,
        strategy=strategy,
        staging=staging,
        variables=tuple(variables) or UNSET,
        secrets=tuple(secrets) or UNSET,
        probes=probes,
    )
    decision = client.send("POST", "/v1/plan", body, DecisionView)
    if as_json:
        from agent.cli.screen import show_json

        show_json(decision)
    if decision.strategy is DecidedStrategy.REFUSE:
        lines = [reason_text(reason) for reason in decision.reasons] or ["no reason was given"]
        if decision.retry_after_s is not UNSET:
            lines.append(f"try again in {decision.retry_after_s:.0f} s")
        lines += [f"besides: {warning}" for warning in decision.warnings]
        raise Failure(Exit.REFUSED, lines[0], lines[1:], word="refused")
    if not as_json:
        from rich.console import Group

        from agent.cli.detail import decision_block
        from agent.cli.screen import show

        show(Group(*decision_block("strategy", decision)))
