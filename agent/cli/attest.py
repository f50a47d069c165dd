"""`enclave-agent attest`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click
import msgspec

from agent.cli.exits import Exit, Failure
from agent.cli.options import output
from agent.cli.session import session
from agent.wire.text import NONCE_PATTERN

if TYPE_CHECKING:
    from rich.console import RenderableType

    from agent.wire.answers import AttestationAnswer

_NONCE = re.compile(NONCE_PATTERN)


@click.command()
@click.argument("name")
@click.option("--nonce", metavar="HEX", help="64 hex digits that the evidence must answer to.")
@output
def attest(name: str, nonce: str | None, output: str) -> None:
    """Show what a deployment's evidence is worth.

    What was proven, by whom and until when, check by check; exit code 1 if it is not enough.
    """
    from agent.cli.client import segment
    from agent.cli.screen import show, show_json
    from agent.wire.answers import AttestationAnswer
    from agent.wire.views import DeploymentView

    if nonce is not None and not _NONCE.fullmatch(nonce):
        raise Failure(Exit.USAGE, "--nonce: must be 64 digits of hex in lower case")
    client = session().client()
    one = client.read(f"/v1/deployments/{segment(name)}", DeploymentView)
    serving = [each for each in one.enclaves if each.slot == one.active_slot] or one.enclaves
    if not serving:
        raise Failure(Exit.FAILED, f"no enclave of {name} runs")
    query = f"?nonce={nonce}" if nonce else ""
    raw = client.read_bytes(f"/v1/enclaves/{serving[0].id}/attestation{query}")
    answer = msgspec.json.decode(raw, type=AttestationAnswer)
    if output == "json":
        show_json(raw)
    else:
        show(page(name, serving[0].id, answer))
    if not answer.verdict.accepted:
        failed = [check.code for check in answer.verdict.checks if not check.passed]
        raise Failure(Exit.FAILED, f"{name} is not attested: {', '.join(failed)}")


def page(name: str, enclave: str, answer: AttestationAnswer) -> RenderableType:
    """The verdict, then every check of it."""
    from rich.console import Group

    from agent.cli.screen import pairs, table
    from agent.cli.text import moment, safe

    head = pairs()
    head.add_row("enclave", f"{enclave} of {safe(name)}")
    if answer.verdict.simulated:
        head.add_row("", "SIMULATED — NOT CONFIDENTIAL")
    head.add_row("verdict", "attested" if answer.verdict.accepted else "NOT ATTESTED")
    head.add_row("TLS key", answer.spki_sha256)
    head.add_row("nonce", answer.nonce)
    head.add_row("observed", moment(answer.observed_at))
    checks = table("CHECK", "", "DETAIL")
    for check in answer.verdict.checks:
        checks.add_row(check.code, "ok" if check.passed else "FAILED", safe(check.detail))
    for check in answer.verdict.stricter or ():
        checks.add_row(check.code, "stricter", safe(check.detail))
    return Group(head, "", checks)
