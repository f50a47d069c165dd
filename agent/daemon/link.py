"""The fleet's side of the daemon: its certificates, and the session with the coordinator.

Without `listen.tls` nothing of it is loaded: the libraries cost memory that a lone host needs not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from agent.api.gpus import inventory_view
from agent.api.page import free_and_total
from agent.api.views import decision_view, update_view
from agent.config import Config
from agent.daemon.parts import Assembly
from agent.host.restart_on_error import restart_on_error
from agent.model.ids import HostId
from agent.model.resources import Listen
from agent.updates.snapshot.publisher import SnapshotPublisher
from agent.updates.snapshot.snapshot import Snapshot
from agent.wire.gpu_views import InventoryView
from agent.wire.host_views import CoordinatorView
from agent.wire.report import ReportedDeployment, ReportedState

if TYPE_CHECKING:
    from agent.pki.keeper import FleetCertificates


async def keep_trust(
    config: Config, host_id: HostId, publisher: SnapshotPublisher, stack: AsyncExitStack
) -> FleetCertificates | None:
    """The certificates as they are now, kept as they change until the stack is left."""
    if config.listen.tls is None:
        return None
    from agent.pki.keeper import FleetCertificates

    marks = config.state_dir / "revocation-lists.json"
    trust = FleetCertificates(config.listen.tls, host_id, publisher, marks=marks)
    await trust.look()
    _beside(stack, asyncio.create_task(restart_on_error("certificates", trust.keep)))
    return trust


def link(
    config: Config, assembly: Assembly, trust: FleetCertificates | None, stack: AsyncExitStack
) -> Callable[[], CoordinatorView] | None:
    """Begin to speak with the coordinator, until the stack is left; how it stands is returned."""
    if trust is None or config.coordinator.url is None:
        return None
    from agent.link.enrolment import Enrolment
    from agent.link.numbers import Numbers
    from agent.link.outbox import Outbox
    from agent.link.prefetch import Prefetch
    from agent.link.report import Reports, reported_host
    from agent.link.session import Session

    publisher, parts = assembly.runtime.publisher, assembly.runtime.parts
    outbox, prefetch = Outbox(parts.store), Prefetch(parts.releases)
    reports = Reports(
        lambda: publisher.snapshot,
        state_of,
        lambda: inventory_of(publisher.snapshot),
        outbox,
        Numbers(parts.store),
    )
    session = Session(
        config.coordinator.url,
        config.coordinator.interval_s,
        trust=trust,
        store=parts.store,
        clock=parts.clock,
        changed=publisher.changed,
        reports=reports,
        outbox=outbox,
        prefetch=prefetch,
        problems=publisher,
        rpc_url=lambda address: _rpc_url(config.listen.rpc, address),
    )
    enrolment = Enrolment(
        config.coordinator.url,
        config.coordinator.enrol_token_file,
        trust=trust,
        problems=publisher,
        host=lambda: reported_host(publisher.snapshot, _rpc_url(config.listen.rpc, None)),
    )
    for what, work in (
        ("session", session.run),
        ("prefetch", prefetch.keep),
        ("enrolment", enrolment.keep),
    ):
        _beside(stack, asyncio.create_task(restart_on_error(what, work), name=what))
    return lambda: session.view


def state_of(snapshot: Snapshot) -> ReportedState:
    """What a report says of the deployments, as the API would."""
    now = snapshot.observed_at
    return ReportedState(
        capacity=free_and_total(snapshot.host),
        deployments=[
            ReportedDeployment(
                name=name,
                status=facts.status,
                tag=facts.revision.tag if facts.revision else None,
                revision=facts.revision.number if facts.revision else None,
                update=update_view(facts.update, facts, now) if facts.update else None,
                next_update=decision_view(facts.next_update),
            )
            for name, facts in sorted(snapshot.deployments.items())
        ],
    )


def inventory_of(snapshot: Snapshot) -> InventoryView | None:
    """As the API shows it; None before the first look."""
    return None if snapshot.inventory is None else inventory_view(snapshot.inventory)


def _rpc_url(listen: str | None, address: str | None) -> str | None:
    """Where the RPC is reached: as configured, or (on every address) where we come from."""
    if listen is None:
        return None
    where = Listen.parse(listen)
    if where.is_wildcard:
        return None if address is None else f"https://{Listen(address=address, port=where.port)}"
    return f"https://{where}"


def _beside(stack: AsyncExitStack, task: asyncio.Task[None]) -> None:
    async def end() -> None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    stack.push_async_callback(end)
