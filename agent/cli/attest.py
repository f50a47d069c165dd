"""`enclave-agent attest`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click
import msgspec

from agent.cli.completion import DEPLOYMENT
from agent.cli.exits import Exit, Failure
from agent.cli.options import Output, output
from agent.cli.session import session
from agent.wire.text import NONCE_PATTERN

if TYPE_CHECKING:
    from rich.console import RenderableType

    from agent.wire.answers import AttestationAnswer

_NONCE = re.compile(NONCE_PATTERN)


@click.command()
@click.argument("name", type=DEPLOYMENT)
@click.option("--nonce", metavar="HEX", help="64 hex digits that the evidence must answer to.")
@output
def attest(name: str, nonce: str | None, output: Output) -> None:
    """Show what a deployment's evidence is worth.

    What was proven, by whom and until when, check by check; exit code 1 if it is not enough. NAME
    may be an enclave's id too, or the beginning of one.
    """
    from agent.cli.names import chosen_enclave
    from agent.cli.screen import show, show_json
    from agent.wire.answers import AttestationAnswer

    if nonce is not None and not _NONCE.fullmatch(nonce):
        raise Failure(Exit.USAGE, "--nonce: must be 64 digits of hex in lower case")
    client = session().client()
    one, named = chosen_enclave(client, name)
    running = [each for each in one.enclaves if each.slot == one.active_slot] or one.enclaves
    serving = [named] if named is not None else running
    if not serving:
        raise Failure(Exit.FAILED, f"no enclave of {name} runs")
    query = f"?nonce={nonce}" if nonce else ""
    raw = client.read_bytes(f"/v1/enclaves/{serving[0].id}/attestation{query}")
    answer = msgspec.json.decode(raw, type=AttestationAnswer)
    if output.for_programs:
        show_json(raw, one_line=output.by_line)
    else:
        show(page(name, serving[0].id, answer), output)
    if not answer.verdict.accepted:
        failed = [check.code for check in answer.verdict.checks if not check.passed]
        raise Failure(Exit.FAILED, f"{name} is not attested: {', '.join(failed)}")


def page(name: str, enclave: str, answer: AttestationAnswer) -> RenderableType:
    """The verdict, then every check of it."""
    from rich.console import Group

    from agent.cli.screen import pairs, table
    from agent.cli.tables import Column, prose
    from agent.cli.text import moment_ago, safe

    head = pairs()
    head.add_row("enclave", f"{enclave} of {safe(name)}")
    if answer.verdict.simulated:
        head.add_row("", "SIMULATED — NOT CONFIDENTIAL")
    head.add_row("verdict", "attested" if answer.verdict.accepted else "NOT ATTESTED")
    head.add_row("TLS key", answer.spki_sha256, whole=True)
    head.add_row("nonce", answer.nonce, whole=True)
    head.add_row("observed", moment_ago(answer.observed_at))
    checks = table(Column("CHECK"), Column(""), prose("DETAIL"))
    for check in answer.verdict.checks:
        checks.add_row(check.code, "ok" if check.passed else "FAILED", safe(check.detail))
    for check in answer.verdict.stricter or ():
        checks.add_row(check.code, "stricter", safe(check.detail))
    return Group(head, "", checks)
