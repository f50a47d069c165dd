"""A trust domain predicted before anything is stopped for it.

RTMR1 and RTMR2 follow from the release's own files and are held against its manifest. MRTD and
RTMR0 are the platform's: the operator endorses them, by shape or for any, and where none is
endorsed for the release's shape no guest of it could ever be Ready. Blocks in a thread: a kernel
and an initrd of 75 MiB take about 0.2 s.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from agent.config import TdxPlatform
from agent.errors import AgentError
from agent.host.files import storage_errors
from agent.host.threads import finish_in_thread
from agent.model.release import LocalImage, Release
from agent.model.shape import shape_of
from agent.releases.port import ReleaseError
from agent.releases.tdx_registers import rtmr1, rtmr2

_BLOCK = 1 << 20


class RegisterMismatchError(AgentError):
    """The bytes here would be measured as another trust domain than the release promises."""

    def __init__(self, release: Release, wrong: Sequence[str]) -> None:
        super().__init__(
            f"{release.repo} {release.tag}: {'; '.join(wrong)}: it was made for another kernel, "
            "initrd, command line or memory, or measured as no OVMF on QEMU would; publish it anew"
        )

    @property
    def code(self) -> str:
        return "measurement_mismatch"


class PlatformNotEndorsedError(AgentError):
    """No MRTD and RTMR0 are endorsed for a shape."""

    @property
    def code(self) -> str:
        return "platform_not_endorsed"


class TdxMeasurements:
    """`platforms`: what the operator endorses."""

    def __init__(self, platforms: Sequence[TdxPlatform]) -> None:
        self._platforms = tuple(platforms)

    async def check_image(self, release: Release, image: LocalImage, vcpus: int) -> None:
        """Implements `agent.releases.measurement.MeasurementCheck`.

        Raises ReleaseError (it promises nothing), PlatformNotEndorsedError, RegisterMismatchError,
        ImageUnfitError, StorageError.
        """
        del vcpus  # in no register that is predicted
        promised = release.tdx_measurement
        if promised is None:
            raise ReleaseError(
                f"{release.repo} {release.tag}: the manifest has no tdx_measurement, so that "
                "nothing could be attested on this host: publish it with one"
            )
        self._require_endorsed(release)
        predicted = await finish_in_thread(_predicted, release, image)
        wrong = [
            f"{name.upper()} would be {value}, but the release expects {promised[name]}"
            for name, value in predicted.items()
            if promised[name] != value
        ]
        if wrong:
            raise RegisterMismatchError(release, wrong)

    def _require_endorsed(self, release: Release) -> None:
        shape = shape_of(release)
        if any(platform.fits(shape) for platform in self._platforms):
            return
        raise PlatformNotEndorsedError(
            f"{release.repo} {release.tag}: attestation.tdx.platforms endorses no MRTD and RTMR0 "
            f"for its shape ({shape}), so that no guest of it could become Ready: add them"
        )


def _predicted(release: Release, image: LocalImage) -> dict[str, str]:
    with storage_errors("read", image.kernel):
        kernel = image.kernel.read_bytes()
    size, digest = _hashed(image.initrd)
    memory_mib = release.demand.memory_mib
    return {
        "rtmr1": rtmr1(kernel, size, release.cmdline, memory_mib).hex(),
        "rtmr2": rtmr2(release.cmdline, digest).hex(),
    }


def _hashed(path: Path) -> tuple[int, bytes]:
    """Size and SHA-384 of one reading."""
    digest, size = hashlib.sha384(), 0
    with storage_errors("hash", path), path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            size += len(block)
    return size, digest.digest()
