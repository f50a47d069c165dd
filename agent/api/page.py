"""`/status`, encoded once a snapshot: asking it often costs next to nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import msgspec

from agent.api.public import public_status
from agent.api.views import amounts_view, decision_view, deployment_view
from agent.model.clock import Instant
from agent.model.egress import EgressFacts
from agent.model.gpu import GpuState
from agent.model.inventory import Inventory
from agent.updates.port import Engine
from agent.updates.snapshot.snapshot import HostFacts, Snapshot
from agent.wire.host_views import (
    CapacityView,
    CoordinatorView,
    EgressView,
    FreeAndTotal,
    GpuCountsView,
    HostView,
    ProblemView,
    RefusalView,
    StatusView,
)

_RESOLVED = ("tee", "accel", "supervisor", "network", "traffic", "cage")


class StatusPage:
    """The bytes of `/status`. What they say is as of the snapshot, all of it from one moment."""

    def __init__(self, engine: Engine, coordinator: Callable[[], CoordinatorView]) -> None:
        self._engine = engine
        self._coordinator = coordinator
        self._encoder = msgspec.json.Encoder()
        self._kept: dict[bool, tuple[tuple[int, CoordinatorView], bytes]] = {}

    def body(self, *, public: bool = False) -> bytes:
        """`public`: without what is the tenants'."""
        snapshot = self._engine.snapshot
        coordinator = self._coordinator()
        key = (snapshot.version, coordinator)
        kept = self._kept.get(public)
        if kept is None or kept[0] != key:
            kept = key, self._encoder.encode(self._view(snapshot, coordinator, public=public))
            self._kept[public] = kept
        return kept[1]

    def _view(
        self, snapshot: Snapshot, coordinator: CoordinatorView, *, public: bool
    ) -> StatusView:
        view = status_view(snapshot, coordinator)
        if not public:
            return view
        return public_status(view, [problem.of_tenant for problem in snapshot.problems])


def status_view(snapshot: Snapshot, coordinator: CoordinatorView) -> StatusView:
    host = snapshot.host
    return StatusView(
        host=_host_view(host, snapshot.observed_at),
        gpus=_gpu_counts(snapshot.inventory),
        capacity=free_and_total(host),
        deployments=[
            deployment_view(facts, snapshot.observed_at)
            for _, facts in sorted(snapshot.deployments.items())
        ],
        coordinator=coordinator,
        problems=[
            ProblemView(
                code=one.code,
                severity=one.severity,
                detail=one.detail,
                mend=one.mend,
                since=f"{one.since.shown(snapshot.observed_at):%Y-%m-%dT%H:%M:%SZ}",
            )
            for one in snapshot.problems
        ],
        ready=snapshot.ready,
        reasons=list(snapshot.not_ready_reasons),
        observed_at=snapshot.observed_at.wall,
        egress=_egress_view(host.egress),
    )


def _egress_view(facts: EgressFacts | None) -> EgressView | None:
    if facts is None:
        return None
    refused = None
    if facts.refused is not None:
        refused = [
            RefusalView(
                destination=one.destination,
                protocol=one.protocol,
                port=one.port,
                count=one.count,
            )
            for one in facts.refused
        ]
    return EgressView(policy=facts.mode, why=facts.why, allow=list(facts.allow), refused=refused)


def free_and_total(host: HostFacts) -> FreeAndTotal:
    return FreeAndTotal(free=amounts_view(host.free), total=amounts_view(host.total))


def capacity_view(snapshot: Snapshot) -> CapacityView:
    return CapacityView(
        free=amounts_view(snapshot.host.free),
        total=amounts_view(snapshot.host.total),
        leased=amounts_view(snapshot.host.leased),
        deployments={
            name: decision_view(facts.next_update)
            for name, facts in sorted(snapshot.deployments.items())
        },
    )


def _host_view(host: HostFacts, now: Instant) -> HostView:
    return HostView(
        id=host.id,
        agent_version=host.agent_version,
        tee=host.tee.value,
        accel=host.accel.value,
        supervisor=host.supervisor.value,
        network=host.network.value,
        traffic=host.traffic.value,
        cage=host.cage.value,
        started_at=host.started_at.shown(now),
        draining=host.draining,
        inventory_complete=host.inventory_complete,
        simulated=host.simulated,
        why={name: getattr(host, name).reason for name in _RESOLVED},
    )


def _gpu_counts(inventory: Inventory | None) -> GpuCountsView:
    """Of what is there: an absent GPU is a problem and no part of the total."""
    states = Counter(gpu.state for gpu in inventory.gpus) if inventory else Counter()
    present = [state for state in GpuState if state is not GpuState.ABSENT]
    return GpuCountsView(
        total=sum(states[state] for state in present),
        **{str(state): states[state] for state in present},
    )
