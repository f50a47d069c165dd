"""The files that a VM boots from: opened once, hashed, predicted, and inherited as they are.

Invariant: what was checked are the very descriptors that QEMU gets; no name is read again. The
config disks are memory that has no name at all.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from agent.enclaves.disks import disk_bytes
from agent.enclaves.port import EnclaveError, LaunchCheck, LaunchOrder
from agent.host.files import storage_errors
from agent.model.enclave import Enclave
from agent.model.measurement import MeasuredLaunch
from agent.model.release import Artifact

_HASH_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Firmware:
    """Which firmware a VM boots. `artifact` None: it is no part of the release (a trust domain's,
    which the operator chose and whose register is endorsed).
    """

    path: Path
    artifact: Artifact | None

    @classmethod
    def of_release(cls, order: LaunchOrder) -> Firmware:
        """Raises EnclaveError if it is not on this host."""
        if order.image.firmware is None:
            raise EnclaveError(
                "firmware_missing",
                "the release's firmware (firmware.sev_snp.sha256) is not in qemu.firmware_dir",
            )
        named = Artifact(name="firmware", sha256=order.release.firmware_sha256)
        return cls(order.image.firmware, named)

    @classmethod
    def of_host(cls, path: Path | None) -> Firmware:
        """Raises EnclaveError if the operator names none."""
        if path is None:
            raise EnclaveError("firmware_missing", "qemu.tdx_firmware names no firmware")
        return cls(path, None)


@dataclass(frozen=True, slots=True)
class BootFiles:
    """The descriptors that QEMU inherits. `firmware_is`: whose firmware it is."""

    kernel: int
    initrd: int
    root_disk: int
    firmware: int | None
    models: tuple[int, ...]
    config: int
    external_config: int
    firmware_is: Firmware | None = None

    @property
    def all(self) -> tuple[int, ...]:
        boot = (self.kernel, self.initrd, self.root_disk, *self.models)
        config = (self.config, self.external_config)
        return (*boot, *config) if self.firmware is None else (*boot, *config, self.firmware)


def open_files(
    held: ExitStack, order: LaunchOrder, external: bytes, firmware: Firmware | None
) -> BootFiles:
    """Open them, for as long as `held` is. `external`: the external config's payload.

    Raises StorageError.
    """
    image = order.image

    def keep(fd: int) -> int:
        held.callback(os.close, fd)
        return fd

    return BootFiles(
        kernel=keep(_open(image.kernel)),
        initrd=keep(_open(image.initrd)),
        root_disk=keep(_open(image.root_disk)),
        firmware=keep(_open(firmware.path)) if firmware else None,
        models=tuple(keep(_open(path)) for path in image.models),
        config=keep(_memory_disk("config", order.release.config)),
        external_config=keep(_memory_disk("external-config", external)),
        firmware_is=firmware,
    )


def _open(path: Path) -> int:
    with storage_errors("open", path):
        return os.open(path, os.O_RDONLY)


def _memory_disk(name: str, payload: bytes) -> int:
    """A config disk without a name in any file system, open for reading only."""
    data = memoryview(disk_bytes(payload))
    fd = os.memfd_create(name)
    try:
        while data:
            data = data[os.write(fd, data) :]
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    finally:
        os.close(fd)


def check_boot_files(
    enclave: Enclave, order: LaunchOrder, files: BootFiles, check_launch: LaunchCheck | None
) -> None:
    """Hash kernel, initrd and firmware, and predict what is measured of them.

    Raises EnclaveError if one is not the release's, or what `check_launch` raises.
    """
    release, image = order.release, order.image
    kernel = _check(files.kernel, image.kernel, release.kernel)
    initrd = _check(files.initrd, image.initrd, release.initrd)
    of = files.firmware_is
    if files.firmware is None or of is None or of.artifact is None:
        return
    firmware = _check(files.firmware, of.path, of.artifact)
    if check_launch is not None:
        launch = MeasuredLaunch(
            vcpus=enclave.vcpus,
            firmware=_inherited(files.firmware),
            kernel=_inherited(files.kernel),
            initrd=_inherited(files.initrd),
            cmdline=release.cmdline,
        )
        check_launch(release, launch, (firmware, kernel, initrd))


def _inherited(fd: int) -> Path:
    """The very file that QEMU gets."""
    return Path(f"/proc/self/fd/{fd}")


def _check(fd: int, path: Path, artifact: Artifact | None) -> str:
    """The file's SHA-256, which is the artifact's."""
    if artifact is None:
        raise EnclaveError("artifact_unverifiable", f"the release has no {path.name} to check")
    if artifact.sha256 is None:
        raise EnclaveError("artifact_unverifiable", f"{artifact.name} has no SHA-256 to check")
    found = _sha256(fd, path)
    if found != artifact.sha256:
        raise EnclaveError(
            "artifact_mismatch",
            f"{path} has SHA-256 {found}, but the release wants {artifact.sha256}",
        )
    return found


def _sha256(fd: int, path: Path) -> str:
    """The hash of the whole file; its offset stays at the beginning."""
    digest, offset = hashlib.sha256(), 0
    with storage_errors("read", path):
        while block := os.pread(fd, _HASH_BLOCK, offset):
            digest.update(block)
            offset += len(block)
    return digest.hexdigest()
