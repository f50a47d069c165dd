"""Whether this host can launch a release at all, which is asked before anything is admitted."""

from __future__ import annotations

from typing import Protocol

from agent.model.release import Release


class Launchable(Protocol):
    """Whether a release is of a launch format that this host has. Asked at admission."""

    async def __call__(self, release: Release) -> None:
        """Raises LaunchFormatError, which names what is missing."""
        ...


async def any_launch(release: Release) -> None:
    """Nothing is known against it."""
    del release
