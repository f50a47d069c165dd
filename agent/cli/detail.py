"""The page of `enclave-agent status NAME`: one deployment in full."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence

import msgspec
from rich.console import Group, RenderableType
from rich.text import Text

from agent.cli.client import reason_text
from agent.cli.expectation import history
from agent.cli.failure import what_is_left, words
from agent.cli.overview import health_word, update_text
from agent.cli.progress import probe_word
from agent.cli.runs import container_state
from agent.cli.screen import pairs, table, word
from agent.cli.tables import Column, Pairs, Paragraph, prose
from agent.cli.text import ago, duration, moment, safe, safe_lines
from agent.config import SIMULATED
from agent.wire.views import (
    DecisionView,
    DeploymentView,
    EnclaveView,
    FaultView,
    ProbesView,
    RollbackView,
    UpdateView,
)


def detail(one: DeploymentView) -> RenderableType:
    """What it is, what runs, the update, the ways back, what is wrong."""
    parts: list[RenderableType] = [_head(one)]
    if one.enclaves:
        parts.extend(["", _enclaves(one.enclaves)])
        parts.extend(runs_block(one.enclaves))
    if one.update is not None:
        parts.extend(["", *update_block(one.update, one.warnings)])
    if one.rollback:
        parts.extend(["", rollback_table(one.rollback)])
    parts.extend(["", *decision_block("next update", one.next_update, one.warnings)])
    if one.degraded is not None:
        parts.extend(["", *fault_block(one.degraded)])
    told = one.update.error if one.update is not None else None
    if one.error is not None and one.error != told:
        parts.extend(["", *fault_block(one.error)])
    return Group(*parts)


def _head(one: DeploymentView) -> RenderableType:
    shown = pairs()
    name = Text.assemble((f"{safe(one.name)}  ", "bold"))
    name.append_text(word(one.status))
    shown.add_row("deployment", name)
    if one.tag:
        shown.add_row("release", f"{safe(one.tag)}, revision {one.revision}")
    if one.simulated:
        shown.add_row("", Text(SIMULATED, style="bold red"))
    if one.debug:
        shown.add_row("", Text("debug release", style="yellow"))
    if one.listen:
        shown.add_row("listens", safe(one.listen))
    for extra in one.publish:
        shown.add_row("", f"{safe(extra.listen)} to port {extra.guest_port} of the guest")
    if one.domain:
        shown.add_row("domain", safe(one.domain))
    if one.probes is not None and (one.probes.path or one.probes.host):
        shown.add_row("asks", _asked(one.probes))
    if one.guest_domain and one.guest_domain != one.domain:
        shown.add_row("guest's name", safe(one.guest_domain))
    for name_, value in sorted((one.variables or {}).items()):
        shown.add_row("variable", safe(f"{name_}={value}"), whole=True)
    stale_ones = one.stale_secrets or ()
    for secret in sorted({*(one.secrets or ()), *stale_ones}):
        stale = ", newer value waits for a relaunch" if secret in stale_ones else ""
        shown.add_row("secret", safe(secret) + stale)
    for limit, count in sorted(one.refused.items()):
        shown.add_row("refused", f"{count} by limits.{safe(limit)}")
    for each in one.reach:
        if each.reached is False:
            why = f"no client reaches {safe(each.listen)}: {safe(each.problem or '')}"
            shown.add_row("cut off", Text(why, style="bold red"))
    if one.health_falls:
        last = f", the last at {moment(one.fell_at[-1])}" if one.fell_at else ""
        shown.add_row("fell", f"{one.health_falls} times from health{last}")
    _warn(shown, one.warnings)
    return shown


def _warn(shown: Pairs, warnings: Iterable[str], told: Container[str] = ()) -> None:
    for warning in warnings:
        if warning not in told:
            shown.add_row("warning", Text(safe(warning), style="yellow"))


def _enclaves(enclaves: list[EnclaveView]) -> RenderableType:
    rows = table(
        Column("ENCLAVE"),
        Column("SLOT", 3),
        Column("REV", 5),
        Column("STATE", 1),
        Column("HEALTH", 2),
        Column("ATTESTED"),
        Column("ADDRESS", 4),
        Column("CONNS", 6),
        Column("PID", 8),
        Column("UP", 7),
        Column("GPUS", wide=True),
        Column("MIB", wide=True),
        Column("VCPUS", wide=True),
        Column("UNIT", wide=True),
    )
    for one in enclaves:
        attested = {None: "-", True: "yes", False: "no"}[one.attested]
        rows.add_row(
            one.id,
            one.slot,
            str(one.revision),
            _state(one),
            word(health_word(one)),
            f"{attested} (SIMULATED)" if one.simulated else attested,
            safe(one.address),
            "-" if one.connections is None else str(one.connections),
            str(one.pid or "-"),
            "-" if one.uptime_s is None else duration(one.uptime_s),
            safe(", ".join(one.gpus) or "-"),
            str(one.memory_mib),
            str(one.vcpus),
            safe(one.unit or "-"),
        )
    return rows


def runs_block(enclaves: list[EnclaveView]) -> list[RenderableType]:
    """Whose guest each is, and what it runs; what is only played is never shown as if it ran."""
    if not any(one.guest or one.containers for one in enclaves):
        return []
    rows = table(
        Column("ENCLAVE"),
        Column("GUEST", 2),
        Column("CONTAINER"),
        Column("STATE"),
        Column("IMAGE", 3),
    )
    for one in enclaves:
        guest = safe(one.guest or "-")
        for each in one.containers:
            image = safe(each.image or "-")
            rows.add_row(one.id, guest, safe(each.name), safe(container_state(each)), image)
        if not one.containers:
            rows.add_row(one.id, guest, "-", "-", "-")
    return ["", rows]


def _state(one: EnclaveView) -> Text:
    """With how far its end is."""
    shown = word(one.state)
    return shown.append(f" ({safe(one.teardown)})") if one.teardown else shown


def update_block(update: UpdateView, told: Container[str] = ()) -> list[RenderableType]:
    """An update with its moments and, while it runs, its progress.

    Its warnings are shown but for those that were told.
    """
    shown = pairs()
    title = Text(f"{update.id}  ")
    title.append_text(update_text(update))
    shown.add_row("update", title)
    shown.add_row("strategy", f"{update.strategy}{', staged' if update.staging else ''}")
    for reason in update.reasons:
        shown.add_row("", safe(reason_text(reason)))
    _warn(shown, update.warnings, told)
    for name in ("created_at", "started_at", "ready_at", "switched_at", "finished_at"):
        at = getattr(update, name)
        if at is not None:
            since = (at - update.created_at).total_seconds()
            offset = f"  {ago(at)}" if name == "created_at" else f"  +{duration(since)}"
            shown.add_row(name.removesuffix("_at"), f"{moment(at)}{offset}")
    if update.downtime_s is not None:
        shown.add_row("downtime", duration(update.downtime_s))
    if update.reset_connections:
        shown.add_row("reset", f"{update.reset_connections} connections")
    progress = update.progress
    stages = stage_words(progress.boot_stages)
    if stages:
        shown.add_row("boot", safe(", ".join(f"{name} {state}" for name, state in stages)))
    for probe in progress.probes:
        last = f"  last: {safe(probe.last)}" if probe.last else ""
        shown.add_row("probe", f"{safe(probe.name)} {probe_word(probe)}{last}")
    if usual := history(update):
        shown.add_row("usually", usual)
    if progress.deadline_at is not None:
        shown.add_row("until", f"{moment(progress.deadline_at)} at the latest")
    blocks: list[RenderableType] = [shown]
    if update.error is not None:
        blocks.extend(fault_block(update.error, what_is_left(update)))
    else:
        blocks.extend(Paragraph(safe(line), hanging=2) for line in what_is_left(update))
    return blocks


def stage_words(boot_stages: dict[str, object] | None) -> list[tuple[str, str]]:
    """(name, status) of what the guest calls its stages; it may say anything."""
    stages = (boot_stages or {}).get("stages")
    if not isinstance(stages, list):
        return []
    return [
        (str(stage.get("name", "?"))[:40], str(stage.get("status", "?"))[:20])
        for stage in stages[:64]
        if isinstance(stage, dict)
    ]


def decision_block(
    title: str, decision: DecisionView, told: Container[str] = ()
) -> list[RenderableType]:
    """What admission says, with its reasons, and its warnings but for those that were told."""
    shown = pairs()
    shown.add_row(title, word(decision.strategy))
    if decision.gpus:
        shown.add_row("gpus", safe(", ".join(decision.gpus)))
    for reason in decision.reasons:
        shown.add_row("because", safe(reason_text(reason)))
    _warn(shown, decision.warnings, told)
    if decision.probes is not msgspec.UNSET:
        shown.add_row("asks", _asked(decision.probes))
        if decision.probes.healthy_when:
            shown.add_row("healthy", safe(decision.probes.healthy_when))
    if decision.retry_after_s is not msgspec.UNSET:
        shown.add_row("try again", f"in {duration(decision.retry_after_s)}")
    if decision.certificate_boots_left is not msgspec.UNSET:
        left = decision.certificate_boots_left
        shown.add_row("boots left", f"{left} this week, each asks for a certificate")
    estimate = decision.downtime_estimate_s
    if estimate is not msgspec.UNSET and not estimate.p90:
        shown.add_row("downtime", "none expected")
    elif estimate is not msgspec.UNSET:
        basis = f"{estimate.samples} samples" if estimate.samples else "no history yet"
        shown.add_row(
            "downtime",
            f"about {duration(estimate.p50)}, rarely over {duration(estimate.p90)} ({basis})",
        )
    return [shown]


def _asked(probes: ProbesView) -> str:
    host = f" of {safe(probes.asked_host)}" if probes.asked_host else ""
    return f"{safe(probes.asked_path or 'nothing')}{host}"


def rollback_table(options: list[RollbackView]) -> RenderableType:
    """Where a rollback could go; the arrow is where it goes by itself."""
    rows = table(Column(""), Column("ROLLBACK TO"), Column("REV"), Column("HOW"), prose("WHY", 1))
    for one in options:
        by_itself = "→" if one.default else ""
        why = safe(one.reason or "")
        rows.add_row(by_itself, safe(one.tag), str(one.revision), one.feasibility, why)
    return rows


def fault_block(fault: FaultView, left: Sequence[str] = ()) -> list[RenderableType]:
    """What went wrong in its own words, what it left, and the console."""
    where = f"in step {fault.step}, " if fault.step else ""
    told = Text(f"{where}{safe(words(fault))}", style="bold red")
    blocks: list[RenderableType] = [Paragraph(told, hanging=2)]
    blocks += [Paragraph(safe(line), hanging=2) for line in left]
    if fault.console_tail:
        blocks.append(Text("console:", style="dim"))
        tail = safe_lines(fault.console_tail).rstrip("\n")
        blocks.append(Text("".join(f"  {line}\n" for line in tail.split("\n")), end=""))
    return blocks
