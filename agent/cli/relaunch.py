"""`enclave-agent relaunch`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from agent.cli.completion import DEPLOYMENT
from agent.cli.options import (
    STRATEGIES,
    Output,
    accept_moved_tag,
    lease,
    output,
    probes,
    values,
    waiting,
)
from agent.cli.session import session

if TYPE_CHECKING:
    from agent.wire.requests import PlanRequest, UpdateRequest


@click.command()
@click.argument("name", type=DEPLOYMENT)
@click.option("--tag", metavar="T", help="Another release. [the same]")
@click.option("--listen", metavar="ADDR:PORT", help="Where clients connect from now on.")
@click.option(
    "--publish",
    "publish",
    multiple=True,
    metavar="ADDR:PORT:GUESTPORT",
    help="All further listeners from now on; repeatable; '' for none.",
)
@click.option("--domain", metavar="D", help="The name that clients ask for; '' for none.")
@values
@click.option("--unset-variable", "no_variables", multiple=True, metavar="K", help="Repeatable.")
@click.option("--unset-secret", "no_secrets", multiple=True, metavar="K", help="Repeatable.")
@probes
@click.option("--staging", is_flag=True, help="Stay ready until accepted.")
@click.option("--strategy", type=STRATEGIES, help="Insist on it. [what fits]")
@click.option(
    "--revert-after-switch/--no-revert-after-switch",
    "revert",
    default=None,
    help="Whether the old version takes the traffic back if the new one fails. [as configured]",
)
@click.option(
    "--restart-old-on-failure",
    "restart_old",
    is_flag=True,
    help="If the old version had to be stopped and the new one fails, start the old one again.",
)
@accept_moved_tag
@click.option(
    "--debug/--no-debug",
    "debug",
    default=None,
    help="Its debug variant (the tag with -debug), with a console and no evidence; or back.",
)
@lease
@click.option("--dry-run", is_flag=True, help="Only say what it would be.")
@waiting
@output
def relaunch(
    name: str,
    output: Output,
    *,
    dry_run: bool,
    wait: bool,
    timeout_s: float | None,
    **given: object,
) -> None:
    """Update a deployment to another release or values.

    What is not said is kept.
    """
    from agent.cli.client import segment
    from agent.cli.plan import ask
    from agent.cli.waiting import follow_up
    from agent.wire.views import UpdateView

    body = request(**given)  # type: ignore[arg-type]  # as click parsed them
    client = session().client()
    if dry_run:
        ask(client, question(name, body), output)
        return
    update = client.send("POST", f"/v1/deployments/{segment(name)}/updates", body, UpdateView)
    follow_up(client, update, wait=wait, timeout_s=timeout_s, output=output)


def request(
    *,
    tag: str | None,
    listen: str | None,
    publish: tuple[str, ...],
    domain: str | None,
    variables: tuple[str, ...],
    secrets: tuple[str, ...],
    no_variables: tuple[str, ...],
    no_secrets: tuple[str, ...],
    probe_path: str | None,
    probe_host: str | None,
    staging: bool,
    strategy: str | None,
    revert: bool | None,
    restart_old: bool,
    accept_moved_tag: bool,
    debug: bool | None,
    lease: str | None,
) -> UpdateRequest:
    """What was typed as what is asked for. Raises Failure USAGE that names the option."""
    from msgspec import UNSET

    from agent.cli.values import (
        changes,
        parse_names,
        parse_publish,
        parse_variables,
        probes_change,
        read_secrets,
    )
    from agent.model.reasons import Strategy
    from agent.wire.requests import UpdateRequest

    gone = parse_names("--unset-variable", no_variables)
    forgotten = parse_names("--unset-secret", no_secrets)
    return UpdateRequest(
        tag=tag or UNSET,
        listen=listen or UNSET,
        publish=parse_publish(filter(None, publish)) if publish else UNSET,
        domain=UNSET if domain is None else domain or None,
        variables=changes(parse_variables(variables), gone),
        secrets=changes(read_secrets(secrets), forgotten),
        probes=probes_change(probe_path, probe_host),
        staging=staging,
        strategy=Strategy(strategy) if strategy else UNSET,
        revert_after_switch=UNSET if revert is None else revert,
        restart_old_on_failure=restart_old,
        accept_moved_tag=accept_moved_tag or UNSET,
        debug=UNSET if debug is None else debug,
        lease=lease,
    )


def question(name: str, body: UpdateRequest) -> PlanRequest:
    """The same as a dry run: the names of what is given and what goes; the values stay here."""
    from msgspec import UNSET

    from agent.wire.requests import PlanRequest

    def split(values: object) -> tuple[tuple[str, ...], tuple[str, ...]]:
        rows = values.items() if isinstance(values, dict) else ()
        given = tuple(key for key, value in rows if value is not None)
        return given, tuple(key for key, value in rows if value is None)

    variables, no_variables = split(body.variables)
    secrets, no_secrets = split(body.secrets)
    return PlanRequest(
        deployment=name,
        tag=body.tag,
        listen=body.listen,
        publish=body.publish,
        domain=body.domain,
        strategy=body.strategy,
        staging=body.staging,
        accept_moved_tag=body.accept_moved_tag,
        debug=body.debug,
        variables=variables or UNSET,
        secrets=secrets or UNSET,
        unset_variables=no_variables or UNSET,
        unset_secrets=no_secrets or UNSET,
        probes=body.probes,
    )
