"""What the engine asks before an enclave is launched, or planned: whether this host is ready."""

from __future__ import annotations

from typing import Protocol

from agent.model.enclave import Enclave
from agent.model.reasons import Reason
from agent.model.release import LocalImage, Release


class Preflight(Protocol):
    """Looks and changes nothing."""

    async def __call__(self, enclave: Enclave, image: LocalImage, *, prepared: bool) -> None:
        """`prepared`: the enclave's GPUs should be by now. Raises AgentError with every lack."""
        ...


class ForeseeLaunch(Protocol):
    """What a launch of a release would fail for as this host is now. Changes nothing."""

    async def __call__(self, release: Release) -> tuple[Reason, ...]: ...


async def any_host(release: Release) -> tuple[Reason, ...]:
    """Nothing is known ahead."""
    del release
    return ()


async def no_preflight(enclave: Enclave, image: LocalImage, *, prepared: bool) -> None:
    """Of plain VMs nothing is asked beyond their admission."""
    del enclave, image, prepared
