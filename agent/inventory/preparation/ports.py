"""The port above a device, and what else is behind it: a reset of its bus is a reset of them all.

Sources: Linux, Documentation/ABI/testing/sysfs-bus-pci (`reset_method`, since 5.15;
`reset_subordinate` of bridges, since 6.13) and drivers/pci/pci.c: by `reset_method` the kernel
resets the bus only for a device that is alone on it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from agent.inventory.preparation.functions import Function, look
from agent.inventory.sysfs import read_text
from agent.model.ids import Bdf

_BDF = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_BUS = "bus"


class BusReset(NamedTuple):
    """Write 1 to `path`. `methods`: of the device, among which the bus must come first for it."""

    path: Path
    methods: str | None = None


def port_above(path: Path) -> Path | None:
    """The entry of the port that a device hangs on; None where it is part of its root."""
    above = path.resolve().parent
    return above if _BDF.fullmatch(above.name) else None


def behind(port: Path) -> tuple[Bdf, ...]:
    """Every function below a port, through whatever bridges."""
    return tuple(sorted(_below(port)))


def _below(folder: Path) -> Iterator[Bdf]:
    try:
        entries = [one for one in os.scandir(folder) if one.is_dir(follow_symlinks=False)]
    except OSError:
        return
    for entry in entries:
        if _BDF.fullmatch(entry.name):
            yield Bdf(entry.name)
            yield from _below(Path(entry.path))


def strangers(sysfs_root: Path, function: Function, port: Path) -> tuple[Bdf, ...]:
    """What is behind the port and does not go with the device, so that it must be left in peace.

    Functions of its own card that no driver has go with it.
    """
    card = function.bdf.rpartition(".")[0]
    found = []
    for bdf in behind(port):
        other = look(sysfs_root, bdf)
        idle = other is None or other.driver is None
        if bdf.rpartition(".")[0] != card or not (bdf in function.mates or idle):
            found.append(bdf)
    return tuple(found)


def bus_reset_of(sysfs_root: Path, function: Function) -> BusReset | None:
    """How the bus of its port can be reset; None where there is no way that concerns it alone."""
    port = port_above(function.path)
    if port is None or strangers(sysfs_root, function, port):
        return None
    if (port / "reset_subordinate").exists():
        return BusReset(port / "reset_subordinate")
    methods = read_text(function.path / "reset_method") or ""
    others = [one for one in methods.split() if one != _BUS]
    if _BUS in methods.split() and others and behind(port) == (function.bdf,):
        return BusReset(function.path / "reset", " ".join(methods.split()))
    return None
