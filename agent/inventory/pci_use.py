"""Where a GPU sits in the machine, and what the host uses it for: a picture, parts made of it.

Sources: Linux, Documentation/ABI/testing/sysfs-bus-pci (slots, `virtfnN`) and
sysfs-class-drm (`enabled` of a connector); `boot_vga` of drivers/pci/pci-sysfs.c: the card that
the firmware's console is on, also where no driver has it and the kernel writes into the
firmware's picture.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from agent.inventory.sysfs import list_names, read_int, read_link_name, read_text
from agent.model.pci_drivers import is_kept_for_guests

_DISPLAY_CLASS = 0x0300
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_UUID_LENGTH = 36


def slot_of(sysfs_root: str, bdf: str) -> str | None:
    """The label of the slot that it is in, as firmware and chassis have it; None: none is told."""
    place = bdf.rpartition(".")[0]
    for name in list_names(f"{sysfs_root}/bus/pci/slots"):
        if read_text(f"{sysfs_root}/bus/pci/slots/{name}/address") == place:
            return name
    return None


def display_of(path: str, class_code: int | None, driver: str | None) -> str | None:
    """How the function at `path` drives a display of the host's; None if it does not.

    One that is kept for guests drives none: whoever set it aside has given the display up.
    """
    if class_code is None or class_code >> 8 != _DISPLAY_CLASS or is_kept_for_guests(driver):
        return None
    if read_int(f"{path}/boot_vga") == 1:
        return "it is the display that the host booted with"
    for card in list_names(f"{path}/drm"):
        for connector in list_names(f"{path}/drm/{card}"):
            if read_text(f"{path}/drm/{card}/{connector}/enabled") == "enabled":
                return f"it drives a display of the host's at {connector}"
    return None


def virtual_functions(path: str) -> list[tuple[str, str | None]]:
    """The addresses of its virtual functions, and who has each."""
    return _virtual(path, list_names(path))


def mediated_devices(path: str) -> list[str]:
    """Devices that its driver has made of it for somebody (drivers/vfio/mdev)."""
    return _mediated(list_names(path))


def parts_in_use(path: str) -> tuple[str, ...]:
    """What was made of the function at `path`, and is somebody's, in words."""
    names = list_names(path)
    virtual = [
        f"its virtual function {bdf}, which {driver} has"
        for bdf, driver in _virtual(path, names)
        if driver is not None
    ]
    return (*virtual, *(f"its mediated device {name}" for name in _mediated(names)))


def _virtual(path: str, names: Iterable[str]) -> list[tuple[str, str | None]]:
    entries = os.path.dirname(path)  # noqa: PTH120 - of every device at every look
    links = [f"{path}/{name}" for name in names if name.startswith("virtfn")]
    return [
        (bdf, read_link_name(f"{entries}/{bdf}/driver"))
        for link in links
        if (bdf := read_link_name(link))
    ]


def _mediated(names: Iterable[str]) -> list[str]:
    return [name for name in names if len(name) == _UUID_LENGTH and _UUID.fullmatch(name)]
