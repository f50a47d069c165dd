"""The page of `enclave-agent status`: host, deployments, what is wrong."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from agent.cli.failure import words
from agent.cli.screen import pairs, table, word
from agent.cli.tables import Column, Paragraph, Table
from agent.cli.text import safe, told_moment
from agent.config import SIMULATED
from agent.wire.host_views import AmountsView, EgressView, ProblemView, StatusView
from agent.wire.views import DeploymentView, EnclaveView, UpdateView

_DASH = "-"
_ENDED = frozenset({"completed", "cancelled"})


def overview(status: StatusView) -> RenderableType:
    """All of it, the worst last: that is where the eye is when the prompt comes back."""
    parts: list[RenderableType] = [_host(status), ""]
    if status.deployments:
        parts.append(deployments_table(status.deployments))
    else:
        parts.append("no deployments; the first one: enclave-agent deploy --help")
    for lines in (_faults(status.deployments), _stale(status.deployments)):
        parts.extend(["", *lines] if lines else [])
    if status.problems:
        parts.extend(["", *_problems(status.problems)])
    return Group(*parts)


def _host(status: StatusView) -> RenderableType:
    host = status.host
    shown = pairs()
    state = Text.assemble((safe(host.id), "bold"))
    state.append(f"  enclave-agent {safe(host.agent_version)}, ")
    state.append_text(_readiness(status))
    shown.add_row("host", state)
    if host.simulated:
        shown.add_row("", Text(SIMULATED, style="bold red"))
    tee = "none (nothing is attested)" if host.tee == "none" else safe(host.tee)
    shown.add_row("tee", tee)
    runs = [f"{name} {getattr(host, name)}" for name in ("accel", "network", "traffic")]
    shown.add_row("runs on", safe(", ".join([*runs, f"supervisor {host.supervisor}"])))
    if status.egress is not None:
        shown.add_row("guests reach", safe(_egress(status.egress)))
    shown.add_row("free", _amounts(status.capacity.free, status.capacity.total))
    if status.coordinator.configured:
        link = "connected" if status.coordinator.connected else "not connected"
        waiting = status.coordinator.outbox
        shown.add_row("coordinator", f"{link}, {waiting} events to be acknowledged")
    return shown


def _egress(egress: EgressView) -> str:
    """The policy, and what it keeps guests from most."""
    parts = [", ".join([egress.policy, *egress.allow])]
    for one in (egress.refused or [])[:1]:
        port = "" if one.port is None else f":{one.port}"
        parts.append(f"refused most: {one.destination}{port} ({one.protocol}, {one.count} times)")
    return "; ".join(parts)


def _readiness(status: StatusView) -> Text:
    if not status.ready:
        why = f": {', '.join(status.reasons)}" if status.reasons else ""
        return Text(f"starting{safe(why)}", style="yellow")
    if status.host.draining:
        return Text("draining: admits nothing new", style="yellow")
    return Text("ready", style="green")


def _amounts(free: AmountsView, total: AmountsView) -> str:
    parts = [
        f"{free.memory_mib} of {total.memory_mib} MiB",
        f"{free.vcpus} of {total.vcpus} vCPUs",
        f"{free.addresses} of {total.addresses} addresses",
    ]
    if total.gpus:
        parts.insert(0, f"{free.gpus} of {total.gpus} GPUs")
    return ", ".join(parts)


def deployments_table(deployments: list[DeploymentView]) -> Table:
    """A line a deployment."""
    rows = table(
        Column("DEPLOYMENT"),
        Column("STATUS"),
        Column("TAG", 1),
        Column("REV", 6),
        Column("SLOT", 5),
        Column("HEALTH", 3),
        Column("LISTEN", 2),
        Column("UPDATE", 4),
        Column("RUNS", 7),
        Column("DOMAIN", wide=True),
        Column("PUBLISHED", wide=True),
        Column("ENCLAVES", wide=True),
    )
    for one in deployments:
        published = ", ".join(f"{each.listen}:{each.guest_port}" for each in one.publish)
        rows.add_row(
            Text(safe(one.name), style="bold"),
            word(one.status),
            safe(one.tag or _DASH),
            str(one.revision or _DASH),
            str(one.active_slot or _DASH),
            word(health_of(one)),
            safe(one.listen or _DASH),
            update_forms(one.update),
            safe(runs_of(one)),
            safe(one.domain or _DASH),
            safe(published or _DASH),
            ", ".join(each.id for each in one.enclaves) or _DASH,
        )
    return rows


def runs_of(one: DeploymentView) -> str:
    """The containers of the enclave that serves; of a guest that only plays them, that it does."""
    for each in one.enclaves:
        if each.slot == one.active_slot:
            names = (f"{c.name} (played)" if c.played else c.name for c in each.containers)
            return ", ".join(names) or _DASH
    return _DASH


def health_of(one: DeploymentView) -> str:
    """Of the enclave that serves."""
    serving = [each for each in one.enclaves if each.slot == one.active_slot]
    return health_word(serving[0]) if serving else _DASH


def health_word(enclave: EnclaveView) -> str:
    if enclave.healthy is None:
        return "not known"
    return "healthy" if enclave.healthy else "unhealthy"


def update_text(update: UpdateView | None) -> Text:
    """`v1 -> v2 started, boot 40 %`; of what has ended, only how."""
    return update_forms(update)[0]


def update_forms(update: UpdateView | None) -> tuple[Text, ...]:
    """The same, and shorter: without where it comes from, then without tags."""
    if update is None:
        return (Text(_DASH),)
    how = word(update.status)
    if update.finished_at is None:
        share = update.progress.percent
        how.append(f", {update.step}" + ("" if share is None else f" {share} %"))
    elif update.status not in _ENDED:
        how.append(f" in {update.step}")
    to, frm = safe(update.tag), safe(update.from_tag or "")
    tags = (f"{frm} -> {to} ", f"-> {to} ", "") if frm else (f"{to} ", "")
    return tuple(Text(tag).append_text(how) for tag in tags)


def _faults(deployments: list[DeploymentView]) -> list[RenderableType]:
    lines: list[RenderableType] = []
    for one in deployments:
        fault = one.degraded or one.error or (one.update.error if one.update else None)
        if fault is not None:
            update = one.update
            serves = update.serves if update and update.error == fault and update.serves else ""
            told = f"{safe(one.name)}: {safe(words(fault))}"
            lines.append(Paragraph(f"{told}; {safe(serves)}" if serves else told, hanging=2))
            lines.append(Text(f"  more: enclave-agent status {safe(one.name)}", style="dim"))
    return lines


def _stale(deployments: list[DeploymentView]) -> list[RenderableType]:
    return [
        Paragraph(
            f"{safe(one.name)}: newer secrets wait for a relaunch: "
            f"{safe(', '.join(one.stale_secrets))}",
            hanging=2,
        )
        for one in deployments
        if one.stale_secrets
    ]


def _problems(problems: list[ProblemView]) -> list[RenderableType]:
    """A block each: what it is, since when, what is wrong, and what to do, to be copied whole."""
    lines: list[RenderableType] = []
    for one in problems:
        head = Text.assemble(word(one.severity), "  ", (safe(one.code), "bold"))
        lines.append(head.append(f"  since {told_moment(one.since)}"))
        lines += [Paragraph(safe(one.detail), 2)] if one.detail else []
        lines += [Paragraph(f"remedy: {safe(one.mend)}", 2, 2)] if one.mend else []
    return lines
