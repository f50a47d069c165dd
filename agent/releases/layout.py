"""Which machine an image version expects, and in which format it is launched, by cvm-version.

Images before 0.11 found their disks differently: no layout is known for them. From 0.15 on the
public image is launched in one measured file (IGVM), which its manifest tells; one that does not
tell so has no launch format that is known. Neither is taken for another version's: it is refused
by name. Images of another publisher (`cvm-source`) count their versions by themselves, so that
theirs are not looked up here: they have the newest machine, and their manifest tells the format.
"""

from __future__ import annotations

import re

from agent.model.shape import FIXED_DISKS

VERSION = re.compile(
    r"v?([0-9]{1,5})\.([0-9]{1,5})\.([0-9]{1,5})([-+][0-9A-Za-z.+-]{1,64})?(@sha256:[0-9a-f]{64})?"
)
VERSION_RULE = "must be a version such as 0.11.0"

_FIRST_WITH_POWER_BUTTON = (0, 12, 0)
_LAYOUTS = (((0, 11, 0), "virtio-pci"),)  # newest first: from which version on, which layout
_ONE_FILE_SINCE = (0, 15, 0)  # before it: firmware, kernel, initrd and command line


def parse_version(text: str) -> tuple[int, int, int]:
    """The numbers of a version; its suffixes and the pin of an image's digest do not count."""
    match = VERSION.fullmatch(text)
    if match is None:
        raise ValueError(VERSION_RULE)
    return int(match[1]), int(match[2]), int(match[3])


def layout_for(cvm_version: str, *, foreign: bool = False) -> str | None:
    """The layout's name, or None for a version that has none here.

    `foreign`: the version is another publisher's.
    """
    if foreign:
        return _LAYOUTS[0][1]
    version = parse_version(cvm_version)
    for since, name in _LAYOUTS:
        if version >= since:
            return name
    return None


def image_version_of(cvm_version: str) -> str:
    """What images of this version are known by: without the pin of one image's digest."""
    return cvm_version.removeprefix("v").partition("@")[0]


def hears_power_button(cvm_version: str) -> bool:
    """Whether images of this version have a driver for the ACPI power button: since 0.12."""
    return parse_version(cvm_version) >= _FIRST_WITH_POWER_BUTTON


def oldest_version() -> str:
    """The oldest version that has a layout."""
    return ".".join(str(part) for part in _LAYOUTS[-1][0])


def boots_kernel(cvm_version: str, *, foreign: bool = False) -> bool:
    """Whether images of this version are launched with a firmware, a kernel and an initrd."""
    return foreign or parse_version(cvm_version) < _ONE_FILE_SINCE


def disks_of(cvm_version: str, *, models: int, volumes: int, foreign: bool = False) -> int:
    """`vm_shape.disks`: volumes count from the version on that has them."""
    has_volumes = foreign or parse_version(cvm_version) >= _LAYOUTS[-1][0]
    return FIXED_DISKS + models + (volumes if has_volumes else 0)
