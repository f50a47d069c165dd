"""`/metrics`: the snapshot as Prometheus gauges, and what the tally counted.

Imported on the first scrape: a host that nobody scrapes does not pay for the library. Labels are
names of ours (deployment, enclave, slot, status); nothing that a guest said becomes a label.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from agent.api.gpu_metrics import gpu_metrics
from agent.api.surface import Surface
from agent.host.network_news import REPAIRED
from agent.model.enclave import EnclaveState
from agent.model.revision import DeploymentStatus
from agent.model.update import UpdateStatus
from agent.updates.snapshot.snapshot import DeploymentFacts, EnclaveFacts, HostFacts, Snapshot

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

_AMOUNTS = ("gpus", "memory_mib", "vcpus", "tee_ids", "addresses", "disk_mib")
_SEVERITIES = ("info", "warning", "error")
_GUEST = ("cpu_util", "gpu_util", "cpu_mem_util", "gpu_mem_util")


def exposition(surface: Surface) -> bytes:
    """The text of one scrape, as of one snapshot."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Page(surface))
    return generate_latest(registry)


class _Page(Collector):
    def __init__(self, surface: Surface) -> None:
        self._surface = surface

    def describe(self) -> Iterator[Metric]:
        return iter(())

    def collect(self) -> Iterator[Metric]:
        snapshot = self._surface.engine.snapshot
        yield from _host(snapshot)
        yield from _deployments(list(snapshot.deployments.values()))
        yield from _updates(list(snapshot.deployments.values()))
        enclaves = [one for facts in snapshot.deployments.values() for one in facts.enclaves]
        yield from _enclaves(enclaves, snapshot)
        yield from gpu_metrics(snapshot.inventory)
        yield from _api(self._surface)


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"enclave_agent_{name}", text, labels=labels)


def _counter(name: str, text: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(f"enclave_agent_{name}", text, labels=labels)


def _host(snapshot: Snapshot) -> Iterator[Metric]:
    host = snapshot.host
    began = host.started_at.shown(snapshot.observed_at)
    info = _gauge("info", "Always 1; the labels say what runs here.", *_INFO)
    info.add_metric(_info(host), 1)
    yield info
    for name, text, value in (
        ("ready", "1 once everything is adopted and reconciled.", snapshot.ready),
        ("draining", "1 while new admissions are refused.", host.draining),
        ("start_time_seconds", "When the agent started.", began.timestamp()),
    ):
        gauge = _gauge(name, text)
        gauge.add_metric([], float(value))
        yield gauge
    free = _gauge("capacity_free", "What is free, by resource.", "resource")
    total = _gauge("capacity", "What there is, by resource.", "resource")
    for name in _AMOUNTS:
        free.add_metric([name], getattr(host.free, name))
        total.add_metric([name], getattr(host.total, name))
    yield free
    yield total
    problems = _gauge("problems", "Things that a person should mend.", "severity")
    for severity in _SEVERITIES:
        count = sum(1 for one in snapshot.problems if one.severity == severity)
        problems.add_metric([severity], count)
    yield problems
    repairs = _counter("network_repairs", "What others changed and was put back.", "what")
    for what in REPAIRED:
        repairs.add_metric([what], snapshot.network_repairs.get(what, 0))
    yield repairs


_INFO = ("host", "version", "tee", "accel", "supervisor", "network", "traffic", "simulated")


def _info(host: HostFacts) -> list[str]:
    resolved = (host.tee, host.accel, host.supervisor, host.network, host.traffic)
    values = [one.value for one in resolved]
    return [host.id, host.agent_version, *values, str(host.simulated).lower()]


def _deployments(deployments: list[DeploymentFacts]) -> Iterator[Metric]:
    status = _gauge("deployment_status", "1 at its status, else 0.", "deployment", "status")
    revision = _gauge("deployment_revision", "The revision that serves.", "deployment")
    stale = _gauge("deployment_stale_secrets", "Secrets newer than the enclave's.", "deployment")
    refused = _counter("refused", "Refused by a tenant's limit.", "deployment", "limit")
    falls = _counter("deployment_health_falls", "From serving well.", "deployment")
    reached = _gauge("listener_reached", "1 if clients reach it, else 0.", "deployment", "listen")
    for facts in deployments:
        name = facts.row.name
        for reach in facts.outside:
            _add(reached, [name, str(reach.listen)], reach.reached)
        for one in DeploymentStatus:
            status.add_metric([name, one], float(facts.status is one))
        revision.add_metric([name], facts.row.active_revision or 0)
        stale.add_metric([name], len(facts.stale_secrets))
        falls.add_metric([name], facts.row.health.falls)
        for limit, count in sorted(facts.refused.items()):
            refused.add_metric([name, limit], count)
    yield status
    yield revision
    yield stale
    yield refused
    yield falls
    yield reached


def _updates(deployments: list[DeploymentFacts]) -> Iterator[Metric]:
    status = _gauge(
        "update_status", "Of the newest update: 1 at its status.", "deployment", "status"
    )
    downtime = _gauge("update_downtime_seconds", "Of the newest update.", "deployment")
    reset = _gauge("update_reset_connections", "Of the newest update.", "deployment")
    for facts in deployments:
        name, update = facts.row.name, facts.update
        if update is None:
            continue
        for one in UpdateStatus:
            status.add_metric([name, one], float(update.status is one))
        reset.add_metric([name], update.reset_connections)
        if update.downtime_s is not None:
            downtime.add_metric([name], update.downtime_s)
    yield status
    yield downtime
    yield reset


_ENCLAVE = ("deployment", "enclave", "slot")


def _enclaves(enclaves: list[EnclaveFacts], snapshot: Snapshot) -> Iterator[Metric]:
    state = _gauge("enclave_state", "1 at its state, else 0.", *_ENCLAVE, "state")
    healthy = _gauge("enclave_healthy", "1 healthy, 0 not; absent: not known.", *_ENCLAVE)
    attested = _gauge("enclave_attested", "1 attested, 0 not; absent: not claimed.", *_ENCLAVE)
    connections = _gauge("enclave_connections", "Established through the data plane.", *_ENCLAVE)
    uptime = _gauge("enclave_uptime_seconds", "Since its launch.", *_ENCLAVE)
    guest = _gauge("guest_utilization", "As the guest itself says.", *_ENCLAVE, "kind")
    for one in enclaves:
        labels = [one.row.deployment, one.row.id, str(one.row.slot)]
        for each in EnclaveState:
            state.add_metric([*labels, each], float(one.state is each))
        _add(healthy, labels, one.healthy)
        _add(attested, labels, one.verdict.attested if one.verdict else None)
        _add(connections, labels, one.connections)
        launched = one.row.launched_at
        _add(uptime, labels, snapshot.observed_at.since(launched) if launched else None)
        said = one.health.metrics if one.health else None
        for kind in _GUEST:
            _add(guest, [*labels, kind], (said or {}).get(kind))
    yield from (state, healthy, attested, connections, uptime, guest)


def _add(gauge: GaugeMetricFamily, labels: list[str], value: Any) -> None:
    """A guest may say anything: only numbers are taken from it."""
    if isinstance(value, int | float):
        gauge.add_metric(labels, float(value))


def _api(surface: Surface) -> Iterator[Metric]:
    updates = _counter("updates", "Updates that ended, by how.", "deployment", "status")
    for (name, status), count in sorted(surface.counters.updates.items()):
        updates.add_metric([name, status], count)
    yield updates
    requests = _counter("http_requests", "Requests answered.", "method", "path", "status")
    for (method, path, code), count in sorted(surface.counters.requests.items()):
        requests.add_metric([method, path, str(code)], count)
    yield requests
    refused = _counter("rpc_refused", "Connections dropped before any HTTP.", "reason")
    for reason, count in sorted(surface.counters.refused.items()):
        refused.add_metric([reason], count)
    yield refused
    streams = _gauge("event_streams", "Followers of events at the moment.")
    streams.add_metric([], surface.streams.count)
    yield streams
