"""What the host's secure processor says of itself, through /dev/sev.

Source: Linux, include/uapi/linux/psp-sev.h (`sev_issue_cmd`, `sev_user_data_snp_status`). Reading
the status changes nothing, and works while guests run.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from agent.errors import AgentError

DEVICE = Path("/dev/sev")
_ISSUE_CMD = 0xC0105300  # _IOWR('S', 0, struct sev_issue_cmd)
_SNP_PLATFORM_STATUS = 9
_COMMAND = struct.Struct("<IQI")  # command, address, the firmware's error
_STATUS = struct.Struct("<BBBBIII8s8s")
_MASK_CHIP_ID, _MASK_CHIP_KEY, _VLEK = 1, 2, 4
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
    current_tcb: bytes
    reported_tcb: bytes


def snp_platform_status(device: Path = DEVICE, ioctl: Ioctl = fcntl.ioctl) -> SnpPlatformStatus:
    """Ask it. Raises SevError. `ioctl`: the seam at which a test stands in for the hardware."""
    answer = ctypes.create_string_buffer(_STATUS.size)
    command = bytearray(_COMMAND.pack(_SNP_PLATFORM_STATUS, ctypes.addressof(answer), 0))
    try:
        descriptor = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise SevError(f"{device} cannot be opened: {error.strerror}") from error
    try:
        ioctl(descriptor, _ISSUE_CMD, command)
    except OSError as error:
        failed = _COMMAND.unpack(command)[2]
        raise SevError(
            f"{device}: SNP_PLATFORM_STATUS: {error.strerror}, firmware error {failed:#x}"
        ) from error
    finally:
        os.close(descriptor)
    major, minor, state, _, build, flags, _, current, reported = _STATUS.unpack(answer.raw)
    return SnpPlatformStatus(
        api=f"{major}.{minor}",
        build=build,
        initialized=bool(state),
        chip_id_masked=bool(flags & _MASK_CHIP_ID),
        chip_key_masked=bool(flags & _MASK_CHIP_KEY),
        vlek_loaded=bool(flags & _VLEK),
        current_tcb=current,
        reported_tcb=reported,
    )
