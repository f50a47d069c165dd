"""Whether a launch would fail for what this host or the release lacks, asked before it is tried.

By the code that a launch itself asks: the measurement of the very files (where they are here) and
the preflight. What the ledger judges (memory, ids of the TEE, GPUs) is not asked again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from agent.config import Accel, Config, Tee
from agent.daemon.preflight import HostPreflight
from agent.errors import AgentError, describe
from agent.model.reasons import Reason, ReasonCode
from agent.model.release import LocalImage, Release
from agent.releases.measurement import MeasurementCheck

_MEASURED = (Tee.SEV_SNP, Tee.SIMULATED)  # by the firmware that the release names
_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"


class LaunchForesight:
    """Implements `agent.updates.engine.preflight.ForeseeLaunch`.

    `local`, `firmware`: of a release, what is here of it. `preflight`: None of plain VMs.
    """

    def __init__(
        self,
        tee: Tee,
        config: Config,
        *,
        local: Callable[[Release], LocalImage | None],
        firmware: Callable[[Release], Awaitable[Path | None]],
        measured: MeasurementCheck,
        preflight: HostPreflight | None,
    ) -> None:
        self._tee = tee
        self._config = config
        self._local = local
        self._firmware = firmware
        self._measured = measured
        self._preflight = preflight

    async def __call__(self, release: Release) -> tuple[Reason, ...]:
        """Everything that its launch would fail for."""
        return tuple([one async for one in self._found(release)])

    async def _found(self, release: Release) -> AsyncIterator[Reason]:
        for told in self._host():
            yield Reason(code=ReasonCode.LAUNCH_IMPOSSIBLE, detail=told)
        firmware = await self._firmware(release)
        if self._tee is Tee.SIMULATED and release.firmware_sha256 and firmware is None:
            told = (
                f"no file of {self._config.qemu.firmware_dir} has the SHA-256 that the release "
                "names (put it there)"
            )
            yield Reason(code=ReasonCode.LAUNCH_IMPOSSIBLE, detail=told)
        elif (mismatch := await self._mismatch(release)) is not None:
            yield mismatch
        if self._preflight is not None:
            for lack in await self._preflight.foresee(release, firmware):
                yield Reason(code=_code(lack.code), detail=f"{lack.detail} ({lack.mend})")

    def _host(self) -> list[str]:
        """What every launch needs."""
        binary, wrong = self._config.qemu.binary, []
        path = os.pathsep.join([os.environ.get("PATH", os.defpath), _SBIN])
        if shutil.which(binary, path=path) is None:
            wrong.append(f"QEMU: {binary} is not there (install it, or set qemu.binary)")
        if self._config.accel is Accel.KVM and not os.access("/dev/kvm", os.R_OK | os.W_OK):
            wrong.append("/dev/kvm may not be used (accel: kvm is configured)")
        return wrong

    async def _mismatch(self, release: Release) -> Reason | None:
        """What would be measured otherwise than promised, or promises nothing."""
        image = self._local(release)
        if self._tee is Tee.NONE:
            return None
        if image is None:
            promised = (
                release.snp_measurement if self._tee in _MEASURED else release.tdx_measurement
            )
            if promised is not None or release.igvm is not None:
                return None
            told = "its manifest has no launch digest, so that nothing could be attested"
            return Reason(
                code=ReasonCode.RELEASE_INVALID, detail=f"{release.repo} {release.tag}: {told}"
            )
        try:
            await self._measured(release, image, release.demand.vcpus)
        except AgentError as error:
            return Reason(code=_code(error.code), detail=describe(error))
        return None


def _code(code: str) -> ReasonCode:
    """The reason of that name; what has none keeps a launch from being made all the same."""
    known = {str(one): one for one in ReasonCode}
    return known.get(code, ReasonCode.LAUNCH_IMPOSSIBLE)
