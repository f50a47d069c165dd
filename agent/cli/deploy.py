"""`enclave-agent deploy`."""

from __future__ import annotations

import click

from agent.cli.completion import DEPLOYMENT
from agent.cli.options import Output, lease, probes, result, values, waiting
from agent.cli.session import session


@click.command()
@click.argument("name", type=DEPLOYMENT)
@click.option("--tag", required=True, metavar="T", help="The release.")
@click.option("--listen", required=True, metavar="ADDR:PORT", help="Where clients connect.")
@click.option(
    "--publish",
    "publish",
    multiple=True,
    metavar="ADDR:PORT:GUESTPORT",
    help="One more listener, for another port of the guest; repeatable.",
)
@click.option("--repo", metavar="R", help="Where releases come from. [NAME]")
@click.option("--domain", metavar="D", help="The name that clients ask for.")
@probes
@values
@click.option("--staging", is_flag=True, help="Stay ready until accepted.")
@lease
@waiting
@result
def deploy(  # noqa: PLR0917 - click passes them by name
    name: str,
    tag: str,
    listen: str,
    publish: tuple[str, ...],
    repo: str | None,
    domain: str | None,
    probe_path: str | None,
    probe_host: str | None,
    variables: tuple[str, ...],
    secrets: tuple[str, ...],
    staging: bool,
    lease: str | None,
    output: Output,
    wait: bool,
    timeout_s: float | None,
) -> None:
    """Create a deployment and start it."""
    from agent.cli.client import segment
    from agent.cli.values import parse_publish, parse_variables, read_secrets
    from agent.cli.waiting import follow_up
    from agent.wire.answers import Deployed
    from agent.wire.requests import DeployRequest, ProbesRequest

    body = DeployRequest(
        tag=tag,
        listen=listen,
        publish=parse_publish(publish),
        repo=repo,
        domain=domain,
        probes=ProbesRequest(path=probe_path or None, host=probe_host or None),
        variables=parse_variables(variables),
        secrets=read_secrets(secrets),
        staging=staging,
        lease=lease,
    )
    client = session().client()
    answer = client.send("PUT", f"/v1/deployments/{segment(name)}", body, Deployed)
    follow_up(client, answer.update, wait=wait, timeout_s=timeout_s, output=output)
