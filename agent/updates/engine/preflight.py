"""What the engine asks before an enclave is launched: whether this host is ready for it."""

from __future__ import annotations

from typing import Protocol

from agent.model.enclave import Enclave
from agent.model.release import LocalImage


class Preflight(Protocol):
    """Looks and changes nothing."""

    async def __call__(self, enclave: Enclave, image: LocalImage, *, prepared: bool) -> None:
        """`prepared`: the enclave's GPUs should be by now. Raises AgentError with every lack."""
        ...


async def no_preflight(enclave: Enclave, image: LocalImage, *, prepared: bool) -> None:
    """Of plain VMs nothing is asked beyond their admission."""
    del enclave, image, prepared
