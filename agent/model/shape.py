"""A VM's shape, in the words of a manifest's `vm_shape`: what its machine's tables depend on."""

from __future__ import annotations

import msgspec

from agent.model.release import Release

FIXED_DISKS = 3  # root, config, external config


class Shape(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`disks`: all of them, the fixed ones too."""

    cpus: int
    memory_mb: int
    gpus: int = 0
    disks: int

    def __str__(self) -> str:
        return (
            f"{self.cpus} cpus, {self.memory_mb} memory_mb, {self.gpus} gpus, {self.disks} disks"
        )


def shape_of(release: Release) -> Shape:
    """Of the VM that a release is launched in."""
    demand = release.demand
    return Shape(
        cpus=demand.vcpus,
        memory_mb=demand.memory_mib,
        gpus=demand.gpus,
        disks=FIXED_DISKS + len(release.models) + len(release.volumes),
    )
