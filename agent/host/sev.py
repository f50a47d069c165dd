"""What the host's secure processor says of itself, through /dev/sev.

Source: Linux, include/uapi/linux/psp-sev.h (`sev_issue_cmd`, `sev_user_data_snp_status`,
`sev_user_data_get_id2`) and drivers/crypto/ccp/sev-dev.c; for what newer firmware tells, SEV-SNP
Firmware ABI (56860), SNP_PLATFORM_STATUS, as virtee/sev reads it. Neither question changes
anything, and both are answered while guests run.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from agent.errors import AgentError

DEVICE = Path("/dev/sev")
_ISSUE_CMD = 0xC0105300  # _IOWR('S', 0, struct sev_issue_cmd)
_GET_ID2, _SNP_PLATFORM_STATUS = 8, 9
_COMMAND = struct.Struct("<IQI")  # command, address, the firmware's error
_STATUS = struct.Struct("<BBBBIII8s8s")
_MASK_CHIP_ID, _MASK_CHIP_KEY, _VLEK, _CIPHERTEXT_HIDING = 1, 2, 4, 1 << 6
_ALIAS_CHECK = 1 << 1
_GET_ID = struct.Struct("<QI")  # address, length: in what is there, out what it takes
_INVALID_LENGTH = 4  # an error of the firmware
_ID_BYTES, _SHORT_ID_BYTES = 64, 8  # of one socket
_MOST_ID_BYTES = 4096
Ioctl = Callable[[int, int, bytearray], object]


class SevError(AgentError):
    """The device cannot be asked; the text says why."""

    @property
    def code(self) -> str:
        return "sev_unavailable"


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpPlatformStatus:
    """`api`: the firmware's, MAJOR.MINOR. TCBs are eight bytes as in a report."""

    api: str
    build: int
    initialized: bool
    chip_id_masked: bool
    chip_key_masked: bool
    vlek_loaded: bool
    ciphertext_hiding: bool
    alias_check_complete: bool
    current_tcb: bytes
    reported_tcb: bytes


def snp_platform_status(device: Path = DEVICE, ioctl: Ioctl = fcntl.ioctl) -> SnpPlatformStatus:
    """Ask it. Raises SevError. `ioctl`: the seam at which a test stands in for the hardware."""
    answer = ctypes.create_string_buffer(_STATUS.size)
    with _opened(device) as descriptor:
        if failed := _issue(descriptor, ioctl, _SNP_PLATFORM_STATUS, ctypes.addressof(answer)):
            raise SevError(f"{device}: SNP_PLATFORM_STATUS: {failed}")
    major, minor, state, memory, build, flags, _, current, reported = _STATUS.unpack(answer.raw)
    return SnpPlatformStatus(
        api=f"{major}.{minor}",
        build=build,
        initialized=bool(state),
        chip_id_masked=bool(flags & _MASK_CHIP_ID),
        chip_key_masked=bool(flags & _MASK_CHIP_KEY),
        vlek_loaded=bool(flags & _VLEK),
        ciphertext_hiding=bool(flags & _CIPHERTEXT_HIDING),
        alias_check_complete=bool(memory & _ALIAS_CHECK),
        current_tcb=current,
        reported_tcb=reported,
    )


def chip_ids(device: Path = DEVICE, ioctl: Ioctl = fcntl.ioctl) -> tuple[bytes, ...]:
    """The id of the processor in each socket, 64 bytes each, as reports name them: shorter ones
    (8 bytes, Turin) are followed by zeros. Ids of zeros, which tell nothing, are left out.

    Raises SevError. `ioctl` as above.
    """
    with _opened(device) as descriptor:
        length = _id_length(descriptor, ioctl, device)
        answer = ctypes.create_string_buffer(length)
        asked = ctypes.create_string_buffer(
            _GET_ID.pack(ctypes.addressof(answer), length), _GET_ID.size
        )
        if failed := _issue(descriptor, ioctl, _GET_ID2, ctypes.addressof(asked)):
            raise SevError(f"{device}: SEV_GET_ID2: {failed}")
    written = min(_GET_ID.unpack(asked.raw)[1], length)
    return tuple(one for one in _split(answer.raw[:written], device) if any(one))


def _id_length(descriptor: int, ioctl: Ioctl, device: Path) -> int:
    """Asked for with no room at all, which the firmware refuses with what it would take."""
    asked = ctypes.create_string_buffer(_GET_ID.pack(0, 0), _GET_ID.size)
    failed = _issue(descriptor, ioctl, _GET_ID2, ctypes.addressof(asked))
    length = int(_GET_ID.unpack(asked.raw)[1])
    if failed is not None and failed.firmware != _INVALID_LENGTH:
        raise SevError(f"{device}: SEV_GET_ID2: {failed}")
    if not 0 < length <= _MOST_ID_BYTES:
        raise SevError(f"{device}: SEV_GET_ID2 tells a length of {length} bytes")
    return length


def _split(raw: bytes, device: Path) -> tuple[bytes, ...]:
    size = _SHORT_ID_BYTES if len(raw) % _ID_BYTES else _ID_BYTES
    if not raw or len(raw) % size:
        raise SevError(f"{device}: SEV_GET_ID2 gives {len(raw)} bytes, which are no ids")
    return tuple(raw[at : at + size].ljust(_ID_BYTES, b"\0") for at in range(0, len(raw), size))


@dataclass(frozen=True, slots=True)
class _Failed:
    """Why a command was not done: the kernel's word, and the firmware's error."""

    reason: str
    firmware: int

    def __str__(self) -> str:
        return f"{self.reason}, firmware error {self.firmware:#x}"


@contextlib.contextmanager
def _opened(device: Path) -> Iterator[int]:
    try:
        descriptor = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise SevError(f"{device} cannot be opened: {error.strerror}") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _issue(descriptor: int, ioctl: Ioctl, command: int, address: int) -> _Failed | None:
    """Have it done with the structure at `address`; None: it was."""
    packed = bytearray(_COMMAND.pack(command, address, 0))
    try:
        ioctl(descriptor, _ISSUE_CMD, packed)
    except OSError as error:
        return _Failed(str(error.strerror), _COMMAND.unpack(packed)[2])
    return None
