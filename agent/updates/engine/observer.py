"""What is seen of a deployment at a moment, put together from all views; and who is probed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

from agent.model.enclave import Enclave, Lifecycle
from agent.model.ids import Bdf, DeploymentName, EnclaveId
from agent.model.resources import GUEST_HTTPS_PORT
from agent.model.revision import Revision
from agent.probes.guest_metrics import METRICS_API_KEY, MetricsAccess
from agent.probes.port import OutsideListener, OutsideTarget, ProbeTarget, TcpCheck
from agent.updates.engine.data_plane import DataPlaneWatch
from agent.updates.engine.dependencies import EngineDependencies
from agent.updates.engine.executor import Executor
from agent.updates.snapshot.rows import Observation, Rows

V = TypeVar("V")


class Observer:
    """Decides nothing."""

    def __init__(
        self,
        parts: EngineDependencies,
        executor: Executor,
        data_plane: DataPlaneWatch,
    ) -> None:
        self._parts = parts
        self._executor = executor
        self._data_plane = data_plane

    def look(self, name: DeploymentName, enclaves: Iterable[Enclave]) -> Observation:
        """What is seen of a deployment at this moment."""
        parts = self._parts
        ids = [row.id for row in enclaves]
        health = {key: parts.probes.view(key) for key in ids}
        return Observation(
            now=parts.clock.now(),
            policy=parts.policy,
            vms={key: parts.enclaves.view(key) for key in ids},
            health={key: view for key, view in health.items() if view is not None},
            verdicts=_of(ids, self._executor.verdicts),
            connections=_of(ids, self._data_plane.connections),
            refused=self._data_plane.refused(name),
            applied_generation=self._executor.applied.get(name),
            outside=parts.outside.view(name),
            judge_again_at=self._executor.judge_again_at,
            values_here=parts.secret_values.here(name),
            values_at_rest=parts.secret_values.at_rest.here(name),
        )

    def watch(self, rows: Rows) -> None:
        """Probe exactly the enclaves whose VM was launched and is not being stopped."""
        for row in rows.enclaves:
            revision = rows.revision(row.revision)
            if revision and row.lifecycle is Lifecycle.RUNNING:
                self._parts.probes.watch(self._target(row, revision))
            else:
                self._parts.probes.unwatch(row.id)
        self._watch_from_outside(rows)

    def _watch_from_outside(self, rows: Rows) -> None:
        """Have the listeners asked while they lead to an enclave, once the route is in force."""
        name, route = rows.deployment.name, rows.deployment.route
        row = next((one for one in rows.enclaves if one.id == route.enclave), None)
        revision = rows.revision(row.revision) if row is not None else None
        if row is None or revision is None:
            self._parts.outside.unwatch(name)
        elif self._executor.applied.get(name) == route.generation:
            self._parts.outside.watch(name, self._outside_target(route.generation, row, revision))

    def _outside_target(self, generation: int, row: Enclave, revision: Revision) -> OutsideTarget:
        """By the name that clients ask for, or that a probe would."""
        health = self._parts.probes.view(row.id)
        shown = (row.spki_sha256, health.spki_sha256 if health else None)
        name = revision.domain or (revision.probe_host or "").partition(":")[0] or None
        return OutsideTarget(
            generation=generation,
            enclave=row.id,
            listeners=tuple(
                OutsideListener(
                    listen=one.listen,
                    tls=one.guest_port == GUEST_HTTPS_PORT,
                    server_name=name,
                    keys=frozenset(key for key in shown if key is not None),
                )
                for one in revision.listeners
            ),
        )

    def _target(self, row: Enclave, revision: Revision) -> ProbeTarget:
        endpoint = self._parts.enclaves.endpoint
        return ProbeTarget(
            enclave=row.id,
            launch_uuid=row.launch_uuid,
            https=endpoint(row, revision, GUEST_HTTPS_PORT),
            health_path=revision.health_path,
            path_named=revision.probes.path is not None,
            path_guarded=revision.health_guarded,
            host=revision.probe_host,
            tcp=tuple(
                TcpCheck(guest_port=port, endpoint=endpoint(row, revision, port))
                for port in revision.published_ports
            ),
            container_names=revision.container_names,
            bound_key=row.spki_sha256,
            binds_itself=not self._parts.policy.by_evidence,
            metrics_access=self._metrics_access(row, revision),
            process=row.process,
        )

    def _metrics_access(self, row: Enclave, revision: Revision) -> MetricsAccess | None:
        """Of a guest that was given the secret, while its value is on this host.

        It may be told only over the key that evidence has bound: a round binds no such key.
        """
        version = revision.secrets.get(METRICS_API_KEY)
        if version is None:
            return None
        token = self._parts.secret_values.get(revision.deployment, METRICS_API_KEY, version)
        bound_key = row.spki_sha256 if self._parts.policy.by_evidence else None
        return MetricsAccess(token=token, bound_key=bound_key) if token else None

    def wants_others(self, row: Enclave) -> bool:
        """Whether it is to be launched with a GPU that is in quarantine."""
        launching = row.lifecycle is Lifecycle.LAUNCHING
        return launching and not self.quarantined().isdisjoint((*row.gpus, *row.switches))

    def quarantined(self) -> frozenset[Bdf]:
        """GPUs and switches that are kept out of use."""
        inventory = self._parts.gpus.inventory
        devices = (*inventory.gpus, *inventory.switches) if inventory else ()
        return frozenset(one.bdf for one in devices if one.quarantine is not None)


def _of(ids: Iterable[EnclaveId], found: Mapping[EnclaveId, V]) -> dict[EnclaveId, V]:
    return {key: found[key] for key in ids if key in found}
