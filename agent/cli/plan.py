"""`enclave-agent plan`: what an update would be, without doing it."""

from __future__ import annotations

import click
from msgspec import UNSET

from agent.cli.client import Client, reason_text
from agent.cli.completion import DEPLOYMENT
from agent.cli.exits import Exit, Failure
from agent.cli.options import STRATEGIES, Output, accept_moved_tag, output
from agent.cli.session import session
from agent.model.reasons import DecidedStrategy, Strategy
from agent.wire.requests import PlanRequest
from agent.wire.views import DecisionView


@click.command()
@click.argument("name", type=DEPLOYMENT)
@click.option("--tag", metavar="T", help="The release. [the same]")
@click.option("--strategy", type=STRATEGIES, help="Insist on it. [what fits]")
@click.option("--staging", is_flag=True, help="As if staged.")
@accept_moved_tag
@output
def plan(
    name: str,
    tag: str | None,
    strategy: str | None,
    output: Output,
    *,
    staging: bool,
    accept_moved_tag: bool,
) -> None:
    """Say what an update would be; changes nothing."""
    body = PlanRequest(
        deployment=name,
        tag=tag or UNSET,
        strategy=Strategy(strategy) if strategy else UNSET,
        staging=staging,
        accept_moved_tag=accept_moved_tag or UNSET,
    )
    ask(session().client(), body, output)


def ask(client: Client, body: PlanRequest, output: Output) -> None:
    """Show the decision; one that refuses ends the command as refused."""
    try:
        decision = client.send("POST", "/v1/plan", body, DecisionView)
    except Failure as failure:
        if failure.exit_code == Exit.UNKNOWN_NAME and body.deployment is not UNSET:
            raise client.suggest(body.deployment, failure) from None
        raise
    if output.for_programs:
        from agent.cli.screen import show_json

        show_json(decision, one_line=output.by_line)
    if decision.strategy is DecidedStrategy.REFUSE:
        lines = [reason_text(reason) for reason in decision.reasons] or ["no reason was given"]
        if decision.retry_after_s is not UNSET:
            lines.append(f"try again in {decision.retry_after_s:.0f} s")
        lines += [f"besides: {warning}" for warning in decision.warnings]
        raise Failure(Exit.REFUSED, lines[0], lines[1:], word="refused")
    if not output.for_programs:
        from rich.console import Group

        from agent.cli.detail import decision_block
        from agent.cli.screen import show

        show(Group(*decision_block("strategy", decision)), output)
