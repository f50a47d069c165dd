"""`enclave-agent images [prune]`."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

import click

from agent.cli.options import Output, output, result, sure
from agent.cli.session import session

if TYPE_CHECKING:
    from agent.wire.answers import Image

_MIB = 1 << 20


@click.group(invoke_without_command=True)
@output
@click.pass_context
def images(ctx: click.Context, output: Output) -> None:
    """Show the images that are kept here."""
    if ctx.invoked_subcommand is not None:
        return
    from agent.cli.screen import show_json, show_json_lines
    from agent.wire.answers import Images

    client = session().client()
    if output.form == "json":
        show_json(client.read_bytes("/v1/images"))
        return
    kept = client.read("/v1/images", Images).images
    if output.by_line:
        show_json_lines(kept)
    else:
        _show(kept, output)


@images.command()
@click.option(
    "--unused-for", "days", type=click.FloatRange(0), default=0, metavar="DAYS", help="[0]"
)
@sure
@result
def prune(days: float, output: Output, *, yes: bool) -> None:
    """Remove images that nothing needs."""
    from agent.cli import text
    from agent.cli.asking import ask_first
    from agent.cli.screen import tell
    from agent.wire.answers import Images

    client = session().client()

    def question() -> str | None:
        before = text.now() - dt.timedelta(days=days)
        kept = client.read("/v1/images", Images).images
        going = [one for one in kept if not one.needed and one.used_at <= before]
        if not going:
            return None
        mib = sum(one.bytes for one in going) // _MIB
        return f"remove {_images(len(going))} ({mib} MiB) that nothing needs?"

    ask_first(question, yes=yes)
    body = {"unused_for_s": round(days * 86400)}
    removed = client.send("POST", "/v1/images/prune", body, Images)
    freed = sum(one.bytes for one in removed.images) // _MIB
    tell(
        removed,
        output,
        *(f"removed {one.key}" for one in removed.images),
        f"{_images(len(removed.images))} removed, {freed} MiB freed",
    )


def _images(count: int) -> str:
    return f"{count} image{'' if count == 1 else 's'}"


def _show(kept: list[Image], output: Output) -> None:
    from agent.cli.screen import show, table
    from agent.cli.tables import Column
    from agent.cli.text import ago, moment, safe

    rows = table(
        Column("IMAGE"),
        Column("MIB", 1),
        Column("LAST USED", 3),
        Column("AGO", 2),
        Column("NEEDED"),
    )
    for one in kept:
        needed = "yes" if one.needed else "no"
        mib = str(one.bytes // _MIB)
        rows.add_row(safe(one.key), mib, moment(one.used_at), ago(one.used_at), needed)
    show(rows, output)
    if output.headers:
        click.echo(f"{_images(len(kept))}, {sum(one.bytes for one in kept) // _MIB} MiB")
