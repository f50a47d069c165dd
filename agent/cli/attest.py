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
    from agent.wire.answers import AttestationAnswer

_NONCE = re.compile(NONCE_PATTERN)


@click.command()
@click.argument("name", type=DEPLOYMENT)
@click.option("--nonce", metavar="HEX", help="64 hex digits that the evidence must answer to.")
@click.option(
    "--accept-chip",
    is_flag=True,
    help="On the host: the processor that its evidence was refused for is this machine's now.",
)
@output
def attest(name: str, nonce: str | None, accept_chip: bool, output: Output) -> None:
    """Show what a deployment's evidence is worth.

    What was checked and what was not, against which collateral of which date, check by check; exit
    code 1 if it is not enough. NAME may be an enclave's id too, or the beginning of one.
    """
    from agent.cli.names import chosen_enclave
    from agent.cli.screen import show_json
    from agent.wire.answers import AttestationAnswer

    if nonce is not None and not _NONCE.fullmatch(nonce):
        raise Failure(Exit.USAGE, "--nonce: must be 64 digits of hex in lower case")
    if accept_chip:
        if nonce is not None:
            raise Failure(Exit.USAGE, "--accept-chip takes no --nonce")
        _accept_chip(name)
        return
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
        _show(name, serving[0].id, answer, output)
    if not answer.verdict.accepted:
        failed = [check.code for check in answer.verdict.checks if not check.passed]
        raise Failure(Exit.FAILED, f"{name} is not attested: {', '.join(failed)}")


def _show(name: str, enclave: str, answer: AttestationAnswer, output: Output) -> None:
    from agent.cli.attest_page import page
    from agent.cli.screen import show
    from agent.cli.text import moment_ago, safe

    before = [("enclave", f"{enclave} of {safe(name)}")]
    after = [
        ("TLS key", answer.spki_sha256),
        ("nonce", answer.nonce),
        ("observed", moment_ago(answer.observed_at)),
    ]
    show(page(answer.verdict, before, after), output)


def _accept_chip(name: str) -> None:
    from agent.cli.client import segment
    from agent.wire.answers import ChipAccepted

    path = f"/v1/deployments/{segment(name)}/accept-chip"
    done = session().client().send("POST", path, None, ChipAccepted)
    click.echo(f"{done.source}: {done.old or 'none was known'} -> {done.new}")
    click.echo("evidence is judged anew by it now")
