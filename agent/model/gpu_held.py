"""Who of the host has a GPU or switch for himself: the one judge of it. Pure.

It is judged here in the same way for everybody: by the driver that has it, what was made of it and
is somebody's, and the programs that use it. Whoever must know all of these looks for them
(`inventory.preparation.holders` walks through every process); for the inventory those count that
the driver tells of.
"""

from __future__ import annotations

from collections.abc import Iterable

from agent.model.pci_drivers import yields


def held_by(
    driver: str | None, uses: Iterable[str] = (), programs: Iterable[str] = ()
) -> tuple[str, ...]:
    """Everybody, in words; none: it may be taken from the host.

    `driver`: whoever has the function; the NVIDIA drivers and those that keep it for guests yield.
    `uses`: what sysfs shows of it in use. `programs`: that have it open.
    """
    drivers = () if yields(driver) else (f"the driver {driver}",)
    return (*drivers, *uses, *programs)
