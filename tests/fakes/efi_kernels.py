"""Kernels of a few kilobytes that are both a bzImage and an EFI image, and boot nothing."""

from __future__ import annotations

import struct

_PE, _OPTIONAL_BYTES, _HEADERS_BYTES = 0x40, 240, 0x400
_SETUP_SECTORS = 4


def efi_kernel(
    *,
    body: bytes = b"\x90" * 512,
    protocol: int = 0x20F,
    xloadflags: int = 0x7F,
    initrd_limit: int = 0x7FFFFFFF,
    loadflags: int = 0x01,
    loader: int = 0,
    swapped: bool = False,
) -> bytes:
    """As Linux lays it out (header_64, PE32+): headers, then two sections.

    `swapped`: the section table is not in the order of the file.
    """
    image = bytearray(_HEADERS_BYTES)
    image[0:2] = b"MZ"
    struct.pack_into("<I", image, 0x3C, _PE)
    image[_PE : _PE + 4] = b"PE\0\0"
    struct.pack_into("<HH", image, _PE + 4, 0x8664, 2)
    struct.pack_into("<H", image, _PE + 20, _OPTIONAL_BYTES)
    optional = _PE + 24
    struct.pack_into("<H", image, optional, 0x20B)
    struct.pack_into("<I", image, optional + 60, _HEADERS_BYTES)
    struct.pack_into("<I", image, optional + 108, 16)
    setup = bytes(512 * (_SETUP_SECTORS + 1) - _HEADERS_BYTES)
    sections = [
        _section(b".setup", _HEADERS_BYTES, len(setup)),
        _section(b".text", _HEADERS_BYTES + len(setup), len(body)),
    ]
    table = b"".join(reversed(sections) if swapped else sections)
    image[optional + _OPTIONAL_BYTES : optional + _OPTIONAL_BYTES + len(table)] = table
    image[0x1F1] = _SETUP_SECTORS
    image[0x1FE:0x200] = b"\x55\xaa"
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x206, protocol)
    image[0x210], image[0x211] = loader, loadflags
    struct.pack_into("<I", image, 0x22C, initrd_limit)
    struct.pack_into("<H", image, 0x236, xloadflags)
    return bytes(image) + setup + body


def _section(name: bytes, at: int, size: int) -> bytes:
    return name.ljust(8, b"\0") + struct.pack("<IIII", size, at, size, at) + bytes(16)
