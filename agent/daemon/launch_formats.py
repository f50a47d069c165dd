"""Whether this host can launch a release: what its QEMU lacks, and disks that have no place beside
the root ports of its board, are told at admission.
"""

from __future__ import annotations

from agent.config import Tee
from agent.enclaves.capabilities import igvm_lacks
from agent.enclaves.pci_layout import layout_of
from agent.enclaves.qemu_probe import QemuProbe, QemuProbeError
from agent.enclaves.root_ports import fullest_root_ports
from agent.errors import describe
from agent.inventory.port import Gpus
from agent.model.release import Release
from agent.releases.port import LaunchFormatError


class CageUnavailableError(LaunchFormatError):
    """`qemu.cage: enforce`, and this host cannot make a cage."""

    @property
    def code(self) -> str:
        return "cage_unavailable"


class LaunchFormats:
    """Implements `agent.updates.admission.launchable.Launchable` for this host's QEMU and TEE.

    `uncaged`: why nothing new is to run here; what ran before is launched again all the same.
    """

    def __init__(
        self, tee: Tee, qemu: QemuProbe, gpus: Gpus | None = None, *, uncaged: str | None = None
    ) -> None:
        self._uncaged = uncaged
        self._tee = tee
        self._qemu = qemu
        self._gpus = gpus

    async def __call__(self, release: Release) -> None:
        """Raises LaunchFormatError. A QEMU that lacks nothing is one that nobody has tried."""
        if self._uncaged is not None:
            raise CageUnavailableError(self._uncaged)
        self._require_places(release)
        if release.igvm is None:
            return
        lacks = await self._lacks() or ["this agent has not been tried with any QEMU that can"]
        raise LaunchFormatError(
            f"{release.repo} {release.tag} is launched in one measured file (IGVM), which this "
            f"host cannot: {'; '.join(lacks)}; use a release that boots OVMF, a kernel and an "
            "initrd"
        )

    def _require_places(self, release: Release) -> None:
        inventory = self._gpus.inventory if self._gpus else None
        if self._tee is not Tee.TDX or inventory is None:
            return
        disks = len(release.models) + len(release.volumes)
        devices = (*inventory.gpus, *inventory.switches)
        fullest = fullest_root_ports(devices, release.demand.gpus)
        room = layout_of(release.layout).data_disk_room(fullest)
        if fullest is not None and disks > room:
            raise LaunchFormatError(
                f"{release.repo} {release.tag} has {disks} models and volumes, and there is room "
                f"for {room} beside the root ports of the layout {fullest.name!r}, which a trust "
                f"domain with {release.demand.gpus} GPUs of this host has: put the models into "
                "fewer packs"
            )

    async def _lacks(self) -> list[str]:
        try:
            found = await self._qemu.capabilities()
        except QemuProbeError as error:
            return [f"whether its QEMU has igvm-cfg is not known: {describe(error)}"]
        shown = ".".join(map(str, found.version))
        return [f"QEMU {shown}: {one}" for one in igvm_lacks(found, self._tee)]
