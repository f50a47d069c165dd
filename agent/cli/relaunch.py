"""`enclave-agent relaunch`."""

from __future__ import annotations

import click

from agent.cli.options import STRATEGIES, probes, values, waiting
from agent.cli.session import session


@click.command()
@click.argument("name")
@click.option("--tag", metavar="T", help="Another release. [the same]")
@values
@probes
@click.option("--staging", is_flag=True, help="Stay ready until accepted.")
@click.option("--strategy", type=STRATEGIES, help="Insist on it. [what fits]")
@click.option("--dry-run", is_flag=True, help="Only say what it would be.")
@waiting
def relaunch(  # noqa: PLR0917 - click passes them by name
    name: str,
    tag: str | None,
    variables: tuple[str, ...],
    secrets: tuple[str, ...],
    probe_path: str | None,
    probe_host: str | None,
    staging: bool,
    strategy: str | None,
    dry_run: bool,
    wait: bool,
    timeout_s: float | None,
) -> None:
    """Update a deployment to another release or values."""
    from msgspec import UNSET

    from agent.cli.client import segment
    from agent.cli.values import parse_variables, probes_change, read_secrets
    from agent.cli.waiting import follow_up
    from agent.model.reasons import Strategy
    from agent.wire.requests import UpdateRequest
    from agent.wire.views import UpdateView

    wanted = Strategy(strategy) if strategy else UNSET
    values, secret_values = parse_variables(variables), read_secrets(secrets)
    asked = probes_change(probe_path, probe_host)
    client = session().client()
    if dry_run:
        from agent.cli.plan import ask

        ask(
            client,
            name,
            tag=tag,
            strategy=wanted,
            staging=staging,
            variables=values.keys(),
            secrets=secret_values.keys(),  # the values stay here
            probes=asked,
        )
        return
    body = UpdateRequest(
        tag=tag or UNSET,
        variables=dict(values) or UNSET,
        secrets=dict(secret_values) or UNSET,
        probes=asked,
        staging=staging,
        strategy=wanted,
    )
    update = client.send("POST", f"/v1/deployments/{segment(name)}/updates", body, UpdateView)
    follow_up(client, update, wait=wait, timeout_s=timeout_s)
