"""The launch measurement that a release promises, held against what its bytes will give.

Invariant: a confidential VM whose digest would not be the release's expected one is refused before
anything is touched; at the launch itself the very descriptors that QEMU inherits are measured.
Where expected values come from is pluggable: today they are the manifest's.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from agent.errors import AgentError
from agent.host.files import storage_errors
from agent.host.threads import finish_in_thread
from agent.model.measurement import MeasuredLaunch
from agent.model.release import LocalImage, Release
from agent.releases.launch_digest import snp_launch_digest
from agent.releases.port import ReleaseError

_REMEMBERED = 64


class MeasurementMismatchError(AgentError):
    """The bytes here would be measured as another launch than the release promises."""

    def __init__(self, release: Release, vcpus: int, *, predicted: str, expected: str) -> None:
        super().__init__(
            f"{release.repo} {release.tag}: predicted launch measurement {predicted} "
            f"({vcpus} vCPUs), but the release expects {expected}: it was made for other "
            "firmware, kernel, initrd, command line or vCPUs; publish it anew"
        )
        self.predicted = predicted
        self.expected = expected

    @property
    def code(self) -> str:
        return "measurement_mismatch"


class FirmwareMissingError(AgentError):
    """The release's firmware is not on this host."""

    def __init__(self, release: Release) -> None:
        super().__init__(
            f"{release.repo} {release.tag}: no file of qemu.firmware_dir has SHA-256 "
            f"{release.firmware_sha256} (firmware.sev_snp.sha256): put that firmware there"
        )

    @property
    def code(self) -> str:
        return "firmware_missing"


class ExpectedMeasurement(Protocol):
    """Where the expected launch digest of a release comes from: hex, or None if there is none."""

    def __call__(self, release: Release) -> str | None: ...


class MeasurementCheck(Protocol):
    """What is asked before something is touched (PREPARE of an update)."""

    async def __call__(self, release: Release, image: LocalImage, vcpus: int) -> None:
        """Raises an AgentError if a launch of these files would not be the release's."""
        ...


def manifest_measurement(release: Release) -> str | None:
    """`snp_measurement` of the manifest."""
    return release.snp_measurement


async def unmeasured(release: Release, image: LocalImage, vcpus: int) -> None:
    """Of plain VMs nothing is measured."""
    del release, image, vcpus


class SnpMeasurements:
    """Predicts and compares. Digests are remembered by the hashes of what they are over."""

    def __init__(
        self,
        expected: ExpectedMeasurement = manifest_measurement,
        digest: Callable[[MeasuredLaunch], bytes] = snp_launch_digest,
    ) -> None:
        self._expected = expected
        self._digest = digest
        self._known: OrderedDict[tuple[str, ...], str] = OrderedDict()

    async def check_image(self, release: Release, image: LocalImage, vcpus: int) -> None:
        """Open and hash the files of a release, and hold their digest against it.

        Raises ReleaseError (it promises none), FirmwareMissingError, MeasurementMismatchError,
        UnmeasurableError, StorageError.
        """
        await finish_in_thread(self._check_files, release, image, vcpus)

    def check_launch(
        self, release: Release, launch: MeasuredLaunch, sha256s: Sequence[str]
    ) -> None:
        """Hold a launch's digest against the release. Blocks; raises as `check_image`.

        `sha256s`: of the firmware, the kernel and the initrd, just hashed by the caller.
        """
        expected = self._promised(release)
        key = (*sha256s, launch.cmdline, str(launch.vcpus))
        predicted = self._known.get(key)
        if predicted is None:
            _, kernel, initrd = sha256s
            hashed = replace(launch, kernel_sha256=kernel, initrd_sha256=initrd)
            predicted = self._digest(hashed).hex()
            self._remember(key, predicted)
        if predicted != expected:
            raise MeasurementMismatchError(
                release, launch.vcpus, predicted=predicted, expected=expected
            )

    def _check_files(self, release: Release, image: LocalImage, vcpus: int) -> None:
        self._promised(release)
        if image.firmware is None:
            raise FirmwareMissingError(release)
        with ExitStack() as held:
            paths = [
                held.enter_context(_opened(path))
                for path in (image.firmware, image.kernel, image.initrd)
            ]
            firmware, kernel, initrd = paths
            launch = MeasuredLaunch(
                vcpus=vcpus,
                firmware=firmware,
                kernel=kernel,
                initrd=initrd,
                cmdline=release.cmdline,
            )
            self.check_launch(release, launch, [_sha256(path) for path in paths])

    def _promised(self, release: Release) -> str:
        expected = self._expected(release)
        if expected is None:
            raise ReleaseError(
                f"{release.repo} {release.tag}: the manifest has no snp_measurement, so that "
                "nothing could be attested: publish it with one"
            )
        if release.firmware_sha256 is None:
            raise ReleaseError(
                f"{release.repo} {release.tag}: the manifest names no firmware "
                "(firmware.sev_snp.sha256), which the measurement depends on"
            )
        return expected

    def _remember(self, key: tuple[str, ...], digest: str) -> None:
        self._known[key] = digest
        with contextlib.suppress(KeyError):  # two threads may tidy at once
            while len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Path]:
    """The file held open, under a path that stays its own whatever becomes of its name."""
    with storage_errors("open", path):
        fd = os.open(path, os.O_RDONLY)
    try:
        yield Path(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def _sha256(path: Path) -> str:
    with storage_errors("hash", path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
