"""The board: holds the newest facts and publishes snapshots. No decision is made here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import msgspec

from agent.host.clock import Clock
from agent.host.wake import Wake
from agent.model.clock import Instant
from agent.model.ids import DeploymentName
from agent.model.inventory import Inventory
from agent.store.port import MEND_DAMAGE
from agent.updates.planner.alarm import Alarm
from agent.updates.secrets.values import SecretValues
from agent.updates.snapshot.forecast import UNKNOWN, Forecast
from agent.updates.snapshot.rows import Observation, Rows
from agent.updates.snapshot.snapshot import DeploymentFacts, HostFacts, Problem, Snapshot
from agent.updates.snapshot.status import deployment_facts

_NETWORK = "host network"  # no deployment can have this name
_STORE, _DAMAGED = "store", "store_damaged"


class SnapshotPublisher:
    """One writer (the engine's tasks), any number of readers of `snapshot`."""

    def __init__(self, host: HostFacts, clock: Clock, secret_values: SecretValues) -> None:
        self._clock = clock
        self._secret_values = secret_values
        self._host = host
        self._forecast = Forecast()
        self._rows: dict[DeploymentName, tuple[Rows, Observation]] = {}
        self._facts: dict[DeploymentName, DeploymentFacts] = {}
        self._inventory: Inventory | None = None
        self._problems: dict[str, Problem] = {}
        self._not_ready: tuple[str, ...] = ("starting",)
        self._store_damage: str | None = None
        self._network_repairs: dict[str, int] = {}
        self.changed = Wake()
        self.snapshot = self._snapshot(0)

    @property
    def rows(self) -> dict[DeploymentName, Rows]:
        return {name: rows for name, (rows, _) in self._rows.items()}

    def show(self, name: DeploymentName, rows: Rows | None, seen: Observation | None) -> None:
        """A deployment as it is now; None: it is gone."""
        if rows is None or seen is None:
            self._rows.pop(name, None)
            self._facts.pop(name, None)
            self._publish()
            return
        self._rows[name] = (rows, seen)
        facts = self._facts_of(name)
        if self._facts.get(name) != facts:
            self._facts[name] = facts
            self._publish()

    def show_forecast(self, forecast: Forecast) -> None:
        """Publish a new forecast."""
        if forecast == self._forecast:
            return
        self._forecast = forecast
        self._host = msgspec.structs.replace(
            self._host, free=forecast.free, total=forecast.total, leased=forecast.leased
        )
        for name in self._rows:
            self._facts[name] = self._facts_of(name)
        self._publish()

    def show_host(self, **fields: object) -> None:
        """Facts of the host that changed."""
        host = msgspec.structs.replace(self._host, **fields)
        if host != self._host:
            self._host = host
            self._publish()

    def show_inventory(self, inventory: Inventory) -> None:
        """What the host has, and what is wrong with it."""
        before = self._inventory.problems if self._inventory else ()
        gone = {one.key for one in before} - {one.key for one in inventory.problems}
        for key in gone:
            self.clear_problem(key)
        for one in inventory.problems:
            self.raise_problem(
                one.key, code=one.code, severity=one.severity, detail=one.detail, mend=one.mend
            )
        self._host = msgspec.structs.replace(self._host, inventory_complete=inventory.complete)
        self._inventory = inventory
        self._publish()

    def show_ready(self, reasons: tuple[str, ...]) -> None:
        """Ready when there is no reason against it."""
        if self._store_damage is None and reasons != self._not_ready:
            self._not_ready = reasons
            self._publish()

    def show_store_damaged(self, detail: str) -> None:
        """For good: only another run of the agent, on a store that is sound, is ready again."""
        self._store_damage = detail
        self._not_ready = (f"store_damaged: {detail}",)
        self.raise_problem(
            _STORE, code=_DAMAGED, severity="error", detail=detail, mend=MEND_DAMAGE
        )

    def raise_problem(
        self,
        key: str,
        *,
        code: str,
        severity: str,
        detail: str,
        mend: str,
        of_tenant: bool = False,
        since: Instant | None = None,
    ) -> bool:
        """Show a problem until it is cleared; the same again keeps its `since`, and is no news.

        A damaged store is shown once, with its own mend, and not by each task that meets it.
        `since`: where it is known from before that it was there.
        """
        if code == _DAMAGED and key != _STORE:
            return False
        known = self._problems.get(key)
        problem = Problem(
            code=code,
            severity=severity,
            detail=detail,
            mend=mend,
            since=since or (known.since if known else self._clock.now()),
            of_tenant=of_tenant,
        )
        if problem == known:
            return False
        self._problems[key] = problem
        self._publish()
        return True

    def show_alarms(self, name: str, alarms: Mapping[str, Alarm]) -> None:
        """All that is wrong with a deployment, say, now; what is not among them is mended."""
        prefix = f"{name}/"
        for key in [key for key in self._problems if key.startswith(prefix)]:
            if key.removeprefix(prefix) not in alarms:
                self.clear_problem(key)
        for key, alarm in alarms.items():
            self.raise_problem(prefix + key, **dataclasses.asdict(alarm), of_tenant=True)

    def show_network(self, problems: Mapping[str, Alarm], repairs: Mapping[str, int]) -> None:
        """What is wrong with the host's network now; how often it was put back, by what."""
        self.show_alarms(_NETWORK, problems)
        if self._network_repairs != repairs:
            self._network_repairs = dict(repairs)
            self._publish()

    def clear_problem(self, key: str) -> None:
        """It is mended."""
        if self._problems.pop(key, None) is not None:
            self._publish()

    def _facts_of(self, name: DeploymentName) -> DeploymentFacts:
        rows, seen = self._rows[name]
        to_launch = rows.update.revision if rows.update else rows.deployment.active_revision
        revision = rows.revision(to_launch)
        missing = self._secret_values.missing(name, revision.awaited_secrets) if revision else ()
        return deployment_facts(
            rows,
            seen,
            next_update=self._forecast.next_update.get(name, UNKNOWN),
            rollback=self._forecast.rollback.get(name, ()),
            missing_secrets=missing,
        )

    def _publish(self) -> None:
        self.snapshot = self._snapshot(self.snapshot.version + 1)
        self.changed.notify()

    def _snapshot(self, version: int) -> Snapshot:
        return Snapshot(
            version=version,
            observed_at=self._clock.now(),
            ready=not self._not_ready,
            not_ready_reasons=self._not_ready,
            host=self._host,
            deployments=dict(sorted(self._facts.items())),
            inventory=self._inventory,
            problems=tuple(self._problems.values()),
            store_damage=self._store_damage,
            network_repairs=self._network_repairs,
        )
