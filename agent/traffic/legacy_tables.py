"""Reads the filter table of iptables-legacy, of whose changes the kernel tells nobody.

It is asked only where the kernel has such a table already: asking would make one. Source:
<linux/netfilter_ipv4/ip_tables.h>; iptables(8) for the names in /proc.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agent.traffic.legacy_rules import Info, items, without_counters

_NAMES = Path("/proc/thread-self/net/ip_tables_names")
_GET_INFO, _GET_ENTRIES = 64, 65  # IPT_SO_GET_…
_NAME = b"filter".ljust(32, b"\0")
_INFO = struct.Struct("=32sI5I5III")
_HEADER = struct.Struct("=32sI4x")  # of struct ipt_get_entries; entries are aligned to 8 bytes


def legacy_items() -> list[Mapping[str, Any]]:
    """Its chains and rules, as nft lists others'; nothing where there is no such table."""
    found = _read()
    return items(*found) if found is not None else []


def legacy_state() -> object:
    """Another value whenever a rule is another; None where there is no such table."""
    found = _read()
    return None if found is None else (found[0], without_counters(found[1]))


def _read() -> tuple[Info, bytes] | None:
    try:
        if "filter" not in _NAMES.read_text().split():
            return None
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as asking:
            told = _ask(asking, _GET_INFO, _NAME.ljust(_INFO.size, b"\0"))
            _, _, *numbers = _INFO.unpack(told)
            info = Info(tuple(numbers[0:5]), tuple(numbers[5:10]), numbers[11])
            request = _HEADER.pack(_NAME, info.size) + bytes(info.size)
            return info, _ask(asking, _GET_ENTRIES, request)[_HEADER.size :]
    except OSError:  # not allowed, or changed in this moment
        return None


def _ask(asking: socket.socket, option: int, request: bytes) -> bytes:
    """getsockopt(2) with a request in the buffer, which Python's own does not do."""
    import ctypes  # only where there is such a table

    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(request, len(request))
    size = ctypes.c_uint32(len(request))
    where = (asking.fileno(), socket.IPPROTO_IP, option)
    if libc.getsockopt(*where, buffer, ctypes.byref(size)):
        raise OSError(ctypes.get_errno(), "getsockopt")
    return buffer.raw
