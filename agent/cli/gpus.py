"""`enclave-agent gpus [release BDF]`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from agent.cli.options import output
from agent.cli.session import session

if TYPE_CHECKING:
    from rich.console import RenderableType

    from agent.wire.gpu_views import GpuView, InventoryView

_DASH = "-"
_RECOVERY_S = 300.0


@click.group(invoke_without_command=True)
@output
@click.pass_context
def gpus(ctx: click.Context, output: str) -> None:
    """Show the GPUs of this host."""
    if ctx.invoked_subcommand is not None:
        return
    from agent.cli.screen import show, show_json
    from agent.wire.gpu_views import InventoryView

    client = session().client()
    if output == "json":
        show_json(client.read_bytes("/v1/inventory"))
        return
    show(inventory_page(client.read("/v1/inventory", InventoryView)))


@gpus.command()
@click.argument("bdf")
def release(bdf: str) -> None:
    """Lift the quarantine of a GPU, or forget one that is absent."""
    from agent.cli.client import segment
    from agent.wire.gpu_views import GpuView

    path = f"/v1/gpus/{segment(bdf)}/release"
    one = session().client().send("POST", path, None, GpuView)
    forgotten = one.state == "absent"
    click.echo(f"{one.bdf} is {'forgotten' if forgotten else one.state}")


@gpus.command()
@click.argument("bdf")
def recover(bdf: str) -> None:
    """Take a broken GPU off the bus and have its port look for it anew.

    Only while nobody has it and nothing else is behind its port. It is requalified afterwards; a
    quarantine stays until it is released.
    """
    from agent.cli.client import segment
    from agent.wire.gpu_views import GpuView

    client = session().client(timeout_s=_RECOVERY_S)
    one = client.send("POST", f"/v1/gpus/{segment(bdf)}/recover", None, GpuView)
    click.echo(f"{one.bdf} is back and {one.state}")
    if one.quarantine is not None:
        click.echo(f"put it into use: enclave-agent gpus release {one.bdf}")


def inventory_page(view: InventoryView) -> RenderableType:
    """A line a GPU, a line a switch, then what is wrong with any."""
    from rich.console import Group

    every = [*view.gpus, *view.switches]
    parts: list[RenderableType] = [_table(every) if every else "this host has no NVIDIA GPU"]
    faults = [line for one in every for line in _faults(one)]
    if faults:
        parts += ["", *faults]
    if not view.complete:
        parts += ["", "the inventory is not complete: see enclave-agent status"]
    return Group(*parts)


def _table(every: list[GpuView]) -> RenderableType:
    from agent.cli.screen import table, word
    from agent.cli.text import safe

    rows = table(
        "BDF", "NAME", "STATE", "OWNER", "CC MODE", "DRIVER", "NUMA", "LINK", "TEMP", "HEALTH"
    )
    for one in every:
        rows.add_row(
            one.bdf,
            safe(one.name or one.device_id or _DASH),
            word(one.state),
            safe(one.owner or _DASH),
            _mode(one),
            safe(one.driver or _DASH),
            _number(one.numa_node),
            _link(one),
            f"{one.temperature_c:.0f} C" if one.temperature_c is not None else _DASH,
            word(one.health.severity),
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


def _faults(one: GpuView) -> list[RenderableType]:
    from agent.cli.text import safe

    lines: list[RenderableType] = []
    if one.quarantine is not None:
        by = safe(one.quarantine.actor)
        lines.append(f"{one.bdf}: quarantined by {by}: {safe(one.quarantine.reason)}")
    lines += [
        f"{one.bdf}: {safe(reason.detail)} (since {safe(reason.since)})"
        for reason in one.health.reasons
    ]
    if one.left_alone is not None:
        lines.append(f"{one.bdf}: left alone: {safe(one.left_alone)}")
    lines += _upkeep(one)
    if one.health.action not in ("none", "watch"):
        lines.append(f"{one.bdf}: needs a {safe(one.health.action)}")
    return lines


def _upkeep(one: GpuView) -> list[RenderableType]:
    """How the agent's work on it goes, where that is not as it should be."""
    from agent.cli.text import safe

    told = one.upkeep
    lines: list[RenderableType] = []
    if told.fault is not None and one.quarantine is None:
        lines.append(f"{one.bdf}: not made ready: {safe(told.fault)}")
        lines += [f"{one.bdf}: mend: {safe(told.mend)}"] if told.mend else []
    if told.mode_told is not None:
        lines.append(f"{one.bdf}: in no mode: {safe(told.mode_told)}")
    lines += [
        f"{one.bdf}: not in mode {safe(limit.mode)}: {safe(limit.detail)}; {safe(limit.mend)}"
        for limit in told.limits
    ]
    if told.resets * 2 >= told.resets_allowed:
        lines.append(f"{one.bdf}: {told.resets} of {told.resets_allowed} resets of this hour")
    return lines
