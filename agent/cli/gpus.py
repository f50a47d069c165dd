"""`enclave-agent gpus [release|recover BDF]`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from agent.cli.completion import GPU
from agent.cli.options import Output, output, result
from agent.cli.session import session

if TYPE_CHECKING:
    from rich.console import RenderableType

    from agent.cli.client import Client
    from agent.cli.tables import Table
    from agent.wire.gpu_views import GpuView, InventoryView

_DASH = "-"
_RECOVERY_S = 300.0


@click.group(invoke_without_command=True)
@output
@click.pass_context
def gpus(ctx: click.Context, output: Output) -> None:
    """Show the GPUs of this host."""
    if ctx.invoked_subcommand is not None:
        return
    from agent.cli.screen import show, show_json, show_json_lines
    from agent.wire.gpu_views import InventoryView

    client = session().client()
    if output.form == "json":
        show_json(client.read_bytes("/v1/inventory"))
        return
    view = client.read("/v1/inventory", InventoryView)
    if output.by_line:
        show_json_lines([*view.gpus, *view.switches])
    else:
        show(inventory_page(view), output)


@gpus.command()
@click.argument("bdf", type=GPU)
@result
def release(bdf: str, output: Output) -> None:
    """Lift the quarantine of a GPU, or forget one that is absent."""
    from agent.cli.screen import tell

    one = _do(session().client(), bdf, "release")
    tell(one, output, f"{one.bdf} is {'forgotten' if one.state == 'absent' else one.state}")


@gpus.command()
@click.argument("bdf", type=GPU)
@result
def recover(bdf: str, output: Output) -> None:
    """Take a broken GPU off the bus and have its port look for it anew.

    Only while nobody has it and nothing else is behind its port. It is requalified afterwards; a
    quarantine stays until it is released.
    """
    from agent.cli.screen import tell

    one = _do(session().client(timeout_s=_RECOVERY_S), bdf, "recover")
    then = f"put it into use: enclave-agent gpus release {one.bdf}"
    tell(one, output, f"{one.bdf} is back and {one.state}", *([then] if one.quarantine else []))


def _do(client: Client, bdf: str, verb: str) -> GpuView:
    from agent.cli.client import segment
    from agent.cli.names import whole_bdf
    from agent.wire.gpu_views import GpuView

    path = f"/v1/gpus/{segment(whole_bdf(client, bdf))}/{verb}"
    return client.send("POST", path, None, GpuView)


def inventory_page(view: InventoryView) -> RenderableType:
    """A line a GPU, a line a switch, then what is wrong with any."""
    from rich.console import Group

    from agent.cli.tables import Paragraph

    every = [*view.gpus, *view.switches]
    parts: list[RenderableType] = [_table(every) if every else "this host has no NVIDIA GPU"]
    faults = [line for one in every for line in _faults(one)]
    if faults:
        parts += ["", *(Paragraph(line, hanging=2) for line in faults)]
    if not view.complete:
        parts += ["", "the inventory is not complete: see enclave-agent status"]
    return Group(*parts)


def _table(every: list[GpuView]) -> Table:
    from agent.cli.screen import table, word
    from agent.cli.tables import Column
    from agent.cli.text import safe

    rows = table(
        Column("BDF"),
        Column("NAME", 4),
        Column("STATE"),
        Column("OWNER", 2),
        Column("CC MODE", 3),
        Column("DRIVER", 5),
        Column("NUMA", 7),
        Column("LINK", 6),
        Column("TEMP", 8),
        Column("HEALTH", 1),
        Column("UUID", wide=True),
        Column("SERIAL", wide=True),
        Column("MIB", wide=True),
        Column("IOMMU", wide=True),
    )
    for one in every:
        name = safe(one.name or one.device_id or _DASH)
        rows.add_row(
            one.bdf,
            (name, name.removeprefix("NVIDIA ")),
            word(one.state),
            safe(one.owner or _DASH),
            _mode(one),
            safe(one.driver or _DASH),
            _number(one.numa_node),
            _link(one),
            f"{one.temperature_c:.0f} C" if one.temperature_c is not None else _DASH,
            word(one.health.severity),
            safe(one.uuid or _DASH),
            safe(one.serial or _DASH),
            _number(one.memory_mib),
            _number(one.iommu_group),
        )
    return rows


def _mode(one: GpuView) -> str:
    active, pending = one.cc_mode.active, one.cc_mode.pending
    if active is None or pending in (None, active):
        return active or _DASH
    return f"{active}, then {pending}"


def _link(one: GpuView) -> str:
    if one.link.speed_gts is None or one.link.width is None:
        return _DASH
    return f"{one.link.speed_gts:g} GT/s x{one.link.width}"


def _number(value: int | None) -> str:
    return _DASH if value is None else str(value)


def _faults(one: GpuView) -> list[str]:
    from agent.cli.text import safe, told_moment

    lines: list[str] = []
    if one.quarantine is not None:
        by = safe(one.quarantine.actor)
        lines.append(f"{one.bdf}: quarantined by {by}: {safe(one.quarantine.reason)}")
    lines += [
        f"{one.bdf}: {safe(reason.detail)}; since {told_moment(reason.since)}"
        for reason in one.health.reasons
    ]
    if one.left_alone is not None:
        lines.append(f"{one.bdf}: left alone: {safe(one.left_alone)}")
    lines += _upkeep(one)
    if one.health.action not in ("none", "watch"):
        lines.append(f"{one.bdf}: needs a {safe(one.health.action)}")
    return lines


def _upkeep(one: GpuView) -> list[str]:
    """How the agent's work on it goes, where that is not as it should be."""
    from agent.cli.text import safe

    told = one.upkeep
    lines: list[str] = []
    if told.fault is not None and one.quarantine is None:
        lines.append(f"{one.bdf}: not made ready: {safe(told.fault)}")
        lines += [f"{one.bdf}: remedy: {safe(told.mend)}"] if told.mend else []
    if told.mode_told is not None:
        lines.append(f"{one.bdf}: in no mode: {safe(told.mode_told)}")
    lines += [
        f"{one.bdf}: not in mode {safe(limit.mode)}: {safe(limit.detail)}; {safe(limit.mend)}"
        for limit in told.limits
    ]
    if told.resets * 2 >= told.resets_allowed:
        lines.append(f"{one.bdf}: {told.resets} of {told.resets_allowed} resets of this hour")
    return lines
