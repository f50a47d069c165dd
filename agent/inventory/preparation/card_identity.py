"""Which card is at a place, as its registers tell: before it is taken off the bus, and after. Pure
but for the reading.

Sources: PCI Express Base Specification, Device Serial Number extended capability (id 3);
include/linux/ioport.h for the flags of `resource`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from agent.errors import AgentError
from agent.inventory.sysfs import read_bytes, read_int, read_link_name, read_text

_BARS = 6
_MEM, _UNSET = 0x200, 0x20000000
_EXTENDED, _SPACE, _SERIAL = 0x100, 4096, 0x0003
_MOST_CAPABILITIES = 96
_IDS = ("vendor", "device", "subsystem_vendor", "subsystem_device")


class CardIdentity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`ids`: vendor, device and the two of its subsystem. `bars`: sizes in bytes, 0 for none.

    `unset`: BARs without an address. `serial`: hex; None where it tells none, or does not answer.
    """

    ids: tuple[int | None, ...]
    iommu_group: int | None
    bars: tuple[int, ...]
    unset: tuple[int, ...] = ()
    serial: str | None = None


ReadSpace = Callable[[Path], bytes]


def read_space(path: Path) -> bytes:
    """Its configuration space, as far as we may read it; empty where it cannot be read."""
    return read_bytes(path, _SPACE) or b""


def space_by(borrow: Callable[[str, str], int]) -> ReadSpace:
    """The same from a file that somebody opens for us: the kernel asks what its opener may."""

    def read(path: Path) -> bytes:
        try:
            fd = borrow("read", str(path))
        except AgentError:
            return read_space(path)
        with open(fd, "rb", buffering=0) as file:  # noqa: PTH123 - a descriptor
            return file.read(_SPACE) or b""

    return read


def identify(path: Path, read: ReadSpace = read_space) -> CardIdentity:
    """Of the function at `path`, read now."""
    group = read_link_name(path / "iommu_group")
    regions = tuple(_regions(read_text(path / "resource") or ""))
    return CardIdentity(
        ids=tuple(read_int(path / name) for name in _IDS),
        iommu_group=int(group) if group and group.isdigit() else None,
        bars=tuple(size for size, _ in regions),
        unset=tuple(index for index, (_, unset) in enumerate(regions) if unset),
        serial=_serial(read(path / "config")),
    )


def changes(before: CardIdentity, after: CardIdentity) -> tuple[str, ...]:
    """What is not as it was, or not as a guest needs it; what was not known is not compared."""
    found = []
    if before.ids != after.ids:
        found.append("it is another kind of device than before")
    if before.serial and after.serial and before.serial != after.serial:
        found.append(f"its serial number is {after.serial}, and was {before.serial}")
    if after.iommu_group is None and before.iommu_group is not None:
        found.append("it has no IOMMU group any more")
    if after.unset:
        found.append(f"no address was found for its BAR {', '.join(map(str, after.unset))}")
    elif any(before.bars) and before.bars != after.bars:
        found.append("its BARs have other sizes than before")
    return tuple(found)


def _regions(text: str) -> Iterator[tuple[int, bool]]:
    """(size, without an address) of each BAR."""
    for line in text.splitlines()[:_BARS]:
        try:
            start, end, flags = (int(word, 16) for word in line.split())
        except ValueError:
            yield 0, False
            continue
        used = end > start or bool(flags & _UNSET)
        size = end - start + 1 if end > start else 0
        yield size, used and bool(flags & _UNSET or (flags & _MEM and start == 0))


def _serial(config: bytes) -> str | None:
    """From the extended capabilities, of which only root is given more than the first 64 bytes."""
    at = _EXTENDED
    for _ in range(_MOST_CAPABILITIES):
        if at < _EXTENDED or at + 12 > len(config):
            return None
        head = int.from_bytes(config[at : at + 4], "little")
        if head in (0, 0xFFFFFFFF):
            return None
        if head & 0xFFFF == _SERIAL:
            return config[at + 4 : at + 12][::-1].hex()
        at = head >> 20 & 0xFFC
    return None
