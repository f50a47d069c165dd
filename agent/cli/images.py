"""`enclave-agent images [prune]`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from agent.cli.options import output
from agent.cli.session import session

if TYPE_CHECKING:
    from agent.wire.answers import Image

_MIB = 1 << 20


@click.group(invoke_without_command=True)
@output
@click.pass_context
def images(ctx: click.Context, output: str) -> None:
    """Show the images that are kept here."""
    if ctx.invoked_subcommand is not None:
        return
    from agent.cli.screen import show_json
    from agent.wire.answers import Images

    client = session().client()
    if output == "json":
        show_json(client.read_bytes("/v1/images"))
        return
    _show(client.read("/v1/images", Images).images)


@images.command()
@click.option(
    "--unused-for", "days", type=click.FloatRange(0), default=0, metavar="DAYS", help="[0]"
)
def prune(days: float) -> None:
    """Remove images that nothing needs."""
    from agent.wire.answers import Images

    body = {"unused_for_s": round(days * 86400)}
    removed = session().client().send("POST", "/v1/images/prune", body, Images).images
    for one in removed:
        click.echo(f"removed {one.key}")
    freed = sum(one.bytes for one in removed) // _MIB
    click.echo(f"{len(removed)} images removed, {freed} MiB freed")


def _show(kept: list[Image]) -> None:
    from agent.cli.screen import show, table

    rows = table("IMAGE", "MIB", "LAST USED", "NEEDED")
    for one in kept:
        used = one.used_at.strftime("%Y-%m-%d %H:%M")
        rows.add_row(one.key, str(one.bytes // _MIB), used, "yes" if one.needed else "no")
    show(rows)
    click.echo(f"{len(kept)} images, {sum(one.bytes for one in kept) // _MIB} MiB")
