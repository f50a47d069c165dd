"""`enclave-agent capacity`."""

from __future__ import annotations

import click

from agent.cli.options import Output, output
from agent.cli.session import session


@click.command()
@output
def capacity(output: Output) -> None:
    """Show what is free of what."""
    from agent.cli.screen import show, show_json, show_json_lines

    client = session().client()
    if output.form == "json":
        show_json(client.read_bytes("/v1/capacity"))
        return
    from rich.console import Group

    from agent.cli.client import reason_text
    from agent.cli.screen import table, word
    from agent.cli.tables import Column, prose
    from agent.cli.text import safe
    from agent.wire.host_views import CapacityView

    view = client.read("/v1/capacity", CapacityView)
    if output.by_line:
        show_json_lines(
            {
                "resource": name,
                "free": getattr(view.free, name),
                "leased": getattr(view.leased, name),
                "total": getattr(view.total, name),
            }
            for name in view.total.__struct_fields__
        )
        return
    amounts = table("RESOURCE", "FREE", "LEASED", "TOTAL")
    for name in view.total.__struct_fields__:
        columns = (getattr(part, name) for part in (view.free, view.leased, view.total))
        amounts.add_row(name, *map(str, columns))
    nexts = table(Column("DEPLOYMENT"), Column("NEXT UPDATE"), prose("BECAUSE", 1))
    for name, decision in view.deployments.items():
        why = "; ".join(reason_text(reason) for reason in decision.reasons)
        nexts.add_row(safe(name), word(decision.strategy), safe(why))
    show(Group(amounts, "", nexts) if view.deployments else amounts, output)
