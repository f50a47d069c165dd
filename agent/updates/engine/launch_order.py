"""Which deployment is launched first after a reboot. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from agent.model.enclave import Enclave
from agent.model.ids import DeploymentName


def biggest_first(
    names: Iterable[DeploymentName], rows: Iterable[Enclave]
) -> list[DeploymentName]:
    """By GPUs, then by memory: what takes the longest to boot begins first, and finds the host's
    memory in one piece.
    """
    sizes: dict[DeploymentName, tuple[int, int]] = {}
    for row in rows:
        gpus, memory_mib = sizes.get(row.deployment, (0, 0))
        sizes[row.deployment] = (gpus + len(row.gpus), memory_mib + row.memory_mib)
    return sorted(names, key=lambda name: sizes.get(name, (0, 0)), reverse=True)
