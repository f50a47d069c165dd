"""The Authenticode digest of a PE image: what a UEFI firmware measures of what it starts. Pure.

Source: Microsoft, Windows Authenticode Portable Executable Signature Format, "Calculating the PE
image hash". Everything but the checksum, the entry of the certificate table and that table itself.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from agent.errors import AgentError

_PE32, _PE32_PLUS = 0x10B, 0x20B
_CHECKSUM, _HEADERS_SIZE = 64, 60  # from the optional header on
_DIRECTORIES = {_PE32: 96, _PE32_PLUS: 112}
_CERTIFICATES = 4  # which of the directories
_SECTION_BYTES = 40
_ALIGNMENT = 8
_MAX_SECTIONS = 96


class ImageUnfitError(AgentError):
    """A boot file that cannot be measured as a trust domain's firmware would."""

    @property
    def code(self) -> str:
        return "kernel_unfit"


@dataclass(frozen=True, slots=True)
class _Image:
    """Reads numbers, never past the end."""

    data: bytes

    def number(self, at: int, size: int) -> int:
        piece = self.data[at : at + size]
        if at < 0 or len(piece) != size:
            raise ImageUnfitError(
                f"the kernel is no EFI image: it ends before byte {at + size} of its headers"
            )
        return int.from_bytes(piece, "little")


def authenticode_sha384(data: bytes) -> bytes:
    """48 bytes. Raises ImageUnfitError for what is no PE image."""
    image = _Image(data)
    header = image.number(0x3C, 4)
    if data[:2] != b"MZ" or data[header : header + 4] != b"PE\0\0":
        raise ImageUnfitError("the kernel is no EFI image: build it with CONFIG_EFI_STUB")
    sections, optional_bytes = image.number(header + 6, 2), image.number(header + 20, 2)
    optional = header + 24
    directories = _DIRECTORIES.get(image.number(optional, 2))
    if directories is None or sections > _MAX_SECTIONS:
        raise ImageUnfitError("the kernel is an EFI image of an unknown kind")
    checksum, entry = optional + _CHECKSUM, optional + directories + 8 * _CERTIFICATES
    has_entry = image.number(optional + directories - 4, 4) > _CERTIFICATES
    headers_bytes = image.number(optional + _HEADERS_SIZE, 4)
    certificate_bytes = image.number(entry + 4, 4) if has_entry else 0
    digest = hashlib.sha384(data[:checksum])
    if has_entry:
        digest.update(data[checksum + 4 : entry])
        digest.update(data[entry + 8 : headers_bytes])
    else:
        digest.update(data[checksum + 4 : headers_bytes])
    hashed = headers_bytes
    table = optional + optional_bytes
    for begin, size in _sections(image, table, sections):
        digest.update(data[begin : begin + size])
        hashed += size
    rest = len(data) - certificate_bytes - hashed
    if rest < 0 or headers_bytes < entry + 8:
        raise ImageUnfitError("the kernel is an EFI image whose parts overlap")
    digest.update(data[hashed : hashed + rest])
    digest.update(bytes(-(hashed + rest) % _ALIGNMENT))
    return digest.digest()


def _sections(image: _Image, table: int, count: int) -> list[tuple[int, int]]:
    """Where they are in the file, in that order, and how long; those with nothing there do not
    count.
    """
    found = []
    for number in range(count):
        at = table + number * _SECTION_BYTES
        size, begin = image.number(at + 16, 4), image.number(at + 20, 4)
        if begin + size > len(image.data):
            raise ImageUnfitError("the kernel is an EFI image that is cut off")
        if size:
            found.append((begin, size))
    return sorted(found)
