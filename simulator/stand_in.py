"""Stands between the agent and QEMU: real VMs, with a stand-in for each device that is passed.

Behind its root port a guest finds a device that does nothing (`pci-testdev`, 1b36:0005), and the
process's arguments show it. All else is as the agent wants it. The standard library alone, to be
out of the way at once.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence

QEMU = "qemu-system-x86_64"


def with_stand_ins(argv: Sequence[str]) -> Iterator[str]:
    """The arguments, without what only the real devices need."""
    words = iter(argv)
    for word in words:
        if word == "-object" and "iommufd" in (value := next(words)).partition(",")[0]:
            continue
        yield word
        if word == "-object":
            yield value
        elif word == "-device":
            yield _stand_in(next(words))


def _stand_in(text: str) -> str:
    device = json.loads(text) if text.startswith("{") else {}
    if device.get("driver") != "vfio-pci":
        return text
    return json.dumps({"driver": "pci-testdev", "id": device["id"], "bus": device["bus"]})


if __name__ == "__main__":
    os.execvp(QEMU, [QEMU, *with_stand_ins(sys.argv[1:])])
