"""Which machine an image version expects: the layout's name, by cvm-version.

Images before 0.11 found their disks differently; no layout is known for them, and a release with
one is refused by name. A newer version than any known keeps the newest layout: the public contract
says that it stays.
"""

from __future__ import annotations

import re

VERSION = re.compile(
    r"v?([0-9]{1,5})\.([0-9]{1,5})\.([0-9]{1,5})([-+][0-9A-Za-z.+-]{1,64})?(@sha256:[0-9a-f]{64})?"
)
VERSION_RULE = "must be a version such as 0.11.0"

_LAYOUTS = (((0, 11, 0), "virtio-pci"),)  # newest first: from which version on, which layout


def parse_version(text: str) -> tuple[int, int, int]:
    """The numbers of a version; its suffixes and the pin of an image's digest do not count."""
    match = VERSION.fullmatch(text)
    if match is None:
        raise ValueError(VERSION_RULE)
    return int(match[1]), int(match[2]), int(match[3])


def layout_for(cvm_version: str) -> str | None:
    """The layout's name, or None for a version that has none here."""
    version = parse_version(cvm_version)
    for since, name in _LAYOUTS:
        if version >= since:
            return name
    return None


def oldest_version() -> str:
    """The oldest version that has a layout."""
    return ".".join(str(part) for part in _LAYOUTS[-1][0])
