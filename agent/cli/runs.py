"""What runs in an enclave, in words: whose guest it is, and each container."""

from __future__ import annotations

from agent.wire.views import ContainerView, DeploymentView, UpdateView


def container_state(one: ContainerView) -> str:
    """In its guest's words, or that it has none yet."""
    if one.played:
        return f"played: nothing of its image runs ({one.state})"
    return one.state or "not told"


def what_runs(update: UpdateView, deployment: DeploymentView) -> list[str]:
    """Of the new version: whose guest it is, and each container with its image."""
    mine = [one for one in deployment.enclaves if one.revision == update.revision]
    lines = []
    for enclave in mine[-1:]:
        if enclave.guest:
            lines.append(f"guest: {enclave.guest}")
        for one in enclave.containers:
            image = f"; {one.image}" if one.image else ""
            lines.append(f"runs: {one.name}, {container_state(one)}{image}")
    return lines
