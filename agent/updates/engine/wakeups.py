"""Wakes the reconciler whose world has changed: one deployment's, or all of them.

What is seen of one enclave moves its own deployment alone. Of eight that are probed every few
seconds each would otherwise have a turn for the news of every other.
"""

from __future__ import annotations

from agent.host.wake import Wake
from agent.model.ids import DeploymentName


class Wakeups:
    """Of the deployments that have an owner."""

    def __init__(self) -> None:
        self._of: dict[DeploymentName, Wake] = {}

    def of(self, name: DeploymentName) -> Wake:
        """What its reconciler waits for."""
        return self._of.setdefault(name, Wake())

    def notify(self) -> None:
        """For everybody."""
        for wakeup in self._of.values():
            wakeup.notify()

    def forget(self, name: DeploymentName) -> None:
        """Nobody owns it any more."""
        self._of.pop(name, None)
