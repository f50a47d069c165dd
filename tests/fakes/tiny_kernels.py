"""Kernels of a few bytes that real QEMU boots in an instant: they print, then halt, end or flood.

Multiboot images (the "a.out kludge" of the Multiboot Specification 0.6.96, section 3.1.3), which
QEMU's -kernel takes; 32-bit code at 1 MiB. They take no processor time once they halt.
"""

from __future__ import annotations

import struct

_LOAD = 0x100000
_HEADER_BYTES = 32
_MAGIC, _ADDRESSES = 0x1BADB002, 1 << 16

# mov dx,0x3f8; next: lodsb; test al,al; jz end; out dx,al; jmp next
_PRINT = bytes.fromhex("66baf803 ac 84c0 7403 ee ebf8")
_HALT = bytes.fromhex("fa f4 ebfd")  # cli; hlt, for ever: no power button is heard
_RESET = bytes.fromhex("66baf90c b006 ee") + _HALT  # port 0xcf9
_POWER_OFF = bytes.fromhex("66ba0406 66b80020 66ef") + _HALT  # q35's PM1 control, S5


def halting(text: str = "halting\n") -> bytes:
    """Prints, and does nothing ever after, whatever it is asked."""
    return _image(text, _HALT)


def resetting(text: str = "resetting\n") -> bytes:
    return _image(text, _RESET)


def powering_off(text: str = "powering off\n") -> bytes:
    return _image(text, _POWER_OFF)


def flooding(text: str = "flood 0123456789abcdef0123456789abcdef0123456789abcdef\n") -> bytes:
    """Prints for ever, as fast as the serial line takes it."""
    # mov esi,text and the printing are behind: jump back over both, and over this jump.
    return _image(text, b"\xeb" + struct.pack("b", -(5 + len(_PRINT) + 2)))


def _image(text: str, ending: bytes) -> bytes:
    entry = _LOAD + _HEADER_BYTES
    code_bytes = 5 + len(_PRINT) + len(ending)
    code = b"\xbe" + struct.pack("<I", entry + code_bytes) + _PRINT + ending
    body = code + text.encode() + b"\0"
    end = entry + len(body)
    checksum = -(_MAGIC + _ADDRESSES) & 0xFFFFFFFF
    header = struct.pack("<8I", _MAGIC, _ADDRESSES, checksum, _LOAD, _LOAD, end, end, entry)
    return header + body
