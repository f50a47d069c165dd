"""Whether this host can launch a release's format: what its QEMU lacks is told at admission."""

from __future__ import annotations

from agent.config import Tee
from agent.enclaves.capabilities import igvm_lacks
from agent.enclaves.qemu_probe import QemuProbe, QemuProbeError
from agent.errors import describe
from agent.model.release import Release
from agent.releases.port import LaunchFormatError


class LaunchFormats:
    """Implements `agent.updates.admission.launchable.Launchable` for this host's QEMU and TEE."""

    def __init__(self, tee: Tee, qemu: QemuProbe) -> None:
        self._tee = tee
        self._qemu = qemu

    async def __call__(self, release: Release) -> None:
        """Raises LaunchFormatError. A QEMU that lacks nothing is one that nobody has tried."""
        if release.igvm is None:
            return
        lacks = await self._lacks() or ["this agent has not been tried with any QEMU that can"]
        raise LaunchFormatError(
            f"{release.repo} {release.tag} is launched in one measured file (IGVM), which this "
            f"host cannot: {'; '.join(lacks)}; use a release that boots OVMF, a kernel and an "
            "initrd"
        )

    async def _lacks(self) -> list[str]:
        try:
            found = await self._qemu.capabilities()
        except QemuProbeError as error:
            return [f"whether its QEMU has igvm-cfg is not known: {describe(error)}"]
        shown = ".".join(map(str, found.version))
        return [f"QEMU {shown}: {one}" for one in igvm_lacks(found, self._tee)]
