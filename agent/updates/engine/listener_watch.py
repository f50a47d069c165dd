"""Listeners of deployments, held against what the host has now: its addresses come and go."""

from __future__ import annotations

from collections.abc import Mapping

from agent.capacity.listen_rules import ListenRules
from agent.model.ids import DeploymentName
from agent.model.resources import Listen
from agent.traffic.port import Unheld
from agent.updates.planner.listener_alarms import listener_alarms
from agent.updates.snapshot.publisher import SnapshotPublisher
from agent.updates.snapshot.rows import Rows


class ListenerWatch:
    """Shows as problems what stands against a listener; changes nothing."""

    def __init__(self, publisher: SnapshotPublisher) -> None:
        self._publisher = publisher
        self._shown: set[DeploymentName] = set()

    def look(
        self,
        deployments: Mapping[DeploymentName, Rows],
        rules: ListenRules,
        unheld: Mapping[Listen, Unheld],
    ) -> None:
        """Show what holds now, and clear what does not any more."""
        for name, rows in deployments.items():
            deployment = rows.deployment
            number = deployment.active_revision or deployment.last_revision
            revision = rows.revision(number)
            found = listener_alarms(deployment, revision, rules, unheld) if revision else {}
            self._publisher.show_alarms(_group(name), found)
        for name in self._shown - deployments.keys():
            self._publisher.show_alarms(_group(name), {})
        self._shown = set(deployments)


def _group(name: DeploymentName) -> str:
    return f"listeners of {name}"
