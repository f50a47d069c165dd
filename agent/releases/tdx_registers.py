"""What a trust domain's RTMR1 and RTMR2 will be: of a kernel that OVMF boots directly. Pure.

Sources: QEMU, hw/i386/x86-common.c (x86_load_linux: what it writes into the kernel's header) and
hw/i386/pc_q35.c (memory below 4 GiB); Linux, Documentation/arch/x86/boot.rst; TCG PC Client
Platform Firmware Profile (the events); Intel TDX Virtual Firmware Design Guide (which register).
Tried against a genuine quote with its event log, and against QEMU itself.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable

from agent.releases.authenticode import ImageUnfitError, authenticode_sha384

_REGISTER_BYTES = 48
_MIB = 1 << 20

# Events of every direct boot, after the kernel's own.
_BOOT_EVENTS = (
    b"Calling EFI Application from Boot Option",
    bytes(4),  # the separator
    b"Exit Boot Services Invocation",
    b"Exit Boot Services Returned with Success",
)
_INITRD_WORD = " initrd=initrd"  # added by OVMF, where there is an initrd

_REAL_MODE, _CMDLINE = 0x10000, 0x20000  # where QEMU puts a bzImage's parts
_LOADER, _CAN_USE_HEAP, _LOADED_HIGH = 0xB0, 0x80, 0x01
_MIN_PROTOCOL, _XLOADFLAGS_PROTOCOL = 0x202, 0x20C
# QEMU lifts the limit for kernels that say that they can be loaded above 4 GiB (bit 1). Tools of
# publishers look at bit 6 (5-level paging), which no kernel has without the other.
_NO_INITRD_LIMIT = 0x02 | 0x40
_OLD_INITRD_LIMIT = 0x37FFFFFF
_ACPI_BYTES = 0x28000
_LOW_MEMORY_FULL, _LOW_MEMORY_SPLIT = 0xB0000000, 0x80000000
_HEADER_END = 0x250


def extended(digests: Iterable[bytes]) -> bytes:
    """A register after these events, in order."""
    register = bytes(_REGISTER_BYTES)
    for digest in digests:
        register = hashlib.sha384(register + digest).digest()
    return register


def rtmr1(kernel: bytes, initrd_bytes: int, cmdline: str, memory_mib: int) -> bytes:
    """48 bytes. Raises ImageUnfitError for a kernel or command line that is not measured so."""
    patched = patched_by_qemu(kernel, initrd_bytes, cmdline, memory_mib)
    return register1_of(authenticode_sha384(patched))


def register1_of(kernel_digest: bytes) -> bytes:
    """From the digest of the kernel as the firmware sees it."""
    return extended((kernel_digest, *(hashlib.sha384(one).digest() for one in _BOOT_EVENTS)))


def rtmr2(cmdline: str, initrd_sha384: bytes) -> bytes:
    """48 bytes: the command line as the firmware hands it on, and the initrd."""
    words = f"{cmdline}{_INITRD_WORD}\0".encode("utf-16-le")
    return extended((hashlib.sha384(words).digest(), initrd_sha384))


def patched_by_qemu(kernel: bytes, initrd_bytes: int, cmdline: str, memory_mib: int) -> bytes:
    """The kernel's file with the header that QEMU gives to the firmware.

    Raises ImageUnfitError.
    """
    header = bytearray(kernel[:_HEADER_END])
    if len(header) < _HEADER_END or header[0x202:0x206] != b"HdrS":
        raise ImageUnfitError("the kernel is no Linux kernel that QEMU boots directly (bzImage)")
    (protocol,) = struct.unpack_from("<H", header, 0x206)
    if protocol < _MIN_PROTOCOL or not header[0x211] & _LOADED_HIGH:
        raise ImageUnfitError(f"the kernel's boot protocol {protocol:#x} is too old")
    if "vga=" in cmdline:
        raise ImageUnfitError("the command line has vga=, which QEMU writes into the kernel")
    address = _initrd_address(bytes(header), protocol, initrd_bytes, memory_mib)
    header[0x210] = _LOADER
    header[0x211] |= _CAN_USE_HEAP
    struct.pack_into("<H", header, 0x224, _CMDLINE - _REAL_MODE - 0x200)
    struct.pack_into("<I", header, 0x228, _CMDLINE)
    struct.pack_into("<II", header, 0x218, address, initrd_bytes)
    return bytes(header) + kernel[_HEADER_END:]


def _initrd_address(header: bytes, protocol: int, initrd_bytes: int, memory_mib: int) -> int:
    limit = _OLD_INITRD_LIMIT
    if protocol >= _XLOADFLAGS_PROTOCOL and header[0x236] & _NO_INITRD_LIMIT:
        limit = 0xFFFFFFFF
    elif protocol > _MIN_PROTOCOL:
        (limit,) = struct.unpack_from("<I", header, 0x22C)
    memory = memory_mib * _MIB
    low = memory if memory < _LOW_MEMORY_FULL else _LOW_MEMORY_SPLIT
    limit = min(limit, low - _ACPI_BYTES - 1)
    if initrd_bytes >= limit:
        raise ImageUnfitError(
            f"the initrd has {initrd_bytes} bytes, which QEMU cannot load into {memory_mib} MiB"
        )
    return (limit - initrd_bytes) & ~0xFFF
