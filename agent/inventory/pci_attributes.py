"""Attributes of one PCI function, as inventory and preparation both read them.

Sources: Linux, Documentation/ABI/testing/sysfs-bus-pci, and include/linux/ioport.h for the flags
of `resource`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import TypeVar

from agent.inventory.sysfs import list_names, read_bytes, read_int, read_text
from agent.model.ids import Bdf
from agent.model.pci import Aer, Bar, Link

N = TypeVar("N", int, float)

BDF_FORM = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_SPEED = re.compile(r"([0-9]+(?:\.[0-9]+)?) GT/s")
_WIDTHS = frozenset({1, 2, 4, 8, 12, 16, 32})  # 0, 63 and 255 are what a lost link reads as
_BARS = 6
_MEM, _PREFETCH, _MEM_64 = 0x200, 0x2000, 0x100000
_NO_ADDRESS = 0x20000000 | 0x10000000  # IORESOURCE_UNSET, IORESOURCE_DISABLED
_HEAD_BYTES, _HEADER_TYPE = 16, 14
_GONE, _NOT_YET = b"\xff\xff", b"\x01\x00"  # vendor ids: nobody answers; retry later


def place_of(name: str, path: str) -> tuple[str, tuple[Bdf, ...]]:
    """(location, the ports above it, the nearest last).

    `pci0000:15/01.0/00.0`: the root bus, which the firmware gives, then device and function of
    every bridge on the way, which the board gives; the bus numbers between are left out.
    """
    try:
        real = os.readlink(path)  # noqa: PTH115 - called for every device of the host
    except OSError:
        return name, ()
    parts = real.split("/")
    root = next((i for i, part in enumerate(parts) if part.startswith("pci")), None)
    if root is None:
        return name, ()
    way = [part.rpartition(":")[2] for part in parts[root + 1 :]]
    ports = tuple(Bdf(part) for part in parts[root + 1 : -1] if BDF_FORM.fullmatch(part))
    return "/".join([parts[root], *way]), ports


def parse_bars(text: str | None) -> tuple[Bar, ...] | None:
    """From `resource`: `start end flags` in hex a line, the six BARs first; unused ones are 0.

    One that the kernel found no address for is flagged so, and begins at 0.
    """
    if text is None:
        return None
    bars = []
    for index, line in enumerate(text.splitlines()[:_BARS]):
        try:
            start, end, flags = (int(word, 16) for word in line.split())
        except ValueError:
            return None
        unset = bool(flags & _NO_ADDRESS)
        if end > start or unset:
            bars.append(
                Bar(
                    index=index,
                    size_bytes=end - start + 1 if end > start else 0,
                    is_64bit=bool(flags & _MEM and flags & _MEM_64),
                    prefetchable=bool(flags & _PREFETCH),
                    assigned=not unset and not (flags & _MEM and start == 0),
                )
            )
    return tuple(bars)


def read_link(path: str, above: str | None) -> Link:
    """The link of the function at `path` to the port at `above`.

    The best of it is what both ends can do: a slot may be slower than its card.
    """
    ends = [path, *([above] if above else [])]
    return Link(
        speed_gts=_speed(f"{path}/current_link_speed"),
        width=_width(f"{path}/current_link_width"),
        max_speed_gts=_least(_speed(f"{end}/max_link_speed") for end in ends),
        max_width=_least(_width(f"{end}/max_link_width") for end in ends),
    )


def _speed(path: str) -> float | None:
    found = _SPEED.match(read_text(path) or "")
    return float(found[1]) if found else None


def _width(path: str) -> int | None:
    width = read_int(path)
    return width if width in _WIDTHS else None


def _least(values: Iterable[N | None]) -> N | None:
    return min((value for value in values if value is not None), default=None)


def read_aer(path: str) -> Aer:
    """The kernel prints a line a kind of error and the total last."""
    return Aer(
        correctable=_total(f"{path}/aer_dev_correctable", "TOTAL_ERR_COR"),
        nonfatal=_total(f"{path}/aer_dev_nonfatal", "TOTAL_ERR_NONFATAL"),
        fatal=_total(f"{path}/aer_dev_fatal", "TOTAL_ERR_FATAL"),
    )


def _total(path: str, name: str) -> int | None:
    for line in reversed((read_text(path) or "").splitlines()):
        word, _, count = line.rpartition(" ")
        if word == name and count.isdigit():
            return int(count)
    return None


def vfio_node(path: str) -> str | None:
    """The name of its file in /dev/vfio/devices, as QEMU looks for it; None: it has none."""
    names = list_names(f"{path}/vfio-dev")
    return next((name for name in names if read_text(f"{path}/vfio-dev/{name}/dev")), None)


def read_presence(path: str) -> bool | None:
    """Whether its configuration space answers; reading wakes a device that sleeps.

    None where that cannot be told: it cannot be read, or the device asks to be tried again.
    """
    head = read_bytes(f"{path}/config", _HEAD_BYTES)
    if head is None or len(head) < 4 or head[:2] == _NOT_YET:
        return None
    # A link that just went down may answer the first word from a cache and nothing else.
    return head[:2] != _GONE and (len(head) < _HEAD_BYTES or head[_HEADER_TYPE] & 0x7F != 0x7F)
