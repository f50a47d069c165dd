"""Which of the devices that a QEMU was given its last words accuse. Pure.

QEMU names the device in what it says of it, but also where the device is only the occasion: a
group that is not viable, memory that cannot be mapped, a file that cannot be opened. So it is the
words after the name that tell. Whoever is not named is not accused, and where the processor's
firmware, KVM or memory is named nobody is.

Sources: the messages of QEMU's hw/vfio (pci.c, device.c, region.c, iommufd.c, container.c,
listener.c), target/i386 (sev.c, cpu.c, kvm/tdx.c), accel/kvm and system/physmem.c.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

from agent.model.ids import Bdf

# What QEMU puts before a message about an argument: the argument itself.
_ARGUMENT = re.compile(r"-device (\{.*?\}|\S+): ")
_OF_A_DEVICE = re.compile(r"\bvfio[ :]|\bvfio_\w+\(|[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_REMARK = re.compile(r"(^|: )(warning|info): ")

# What keeps a device from a guest and is not its own doing.
_HOSTS_DOING = re.compile(
    "|".join(
        (
            r"group \d+ is not viable",
            r"container",
            r"/dev/(vfio|iommu)",
            r"vfio-dev",
            r"dma.?map",
            r"memory",
            r"discard",
            r"iova|address width|aw.bits",
            r"Property|property",
            r"not (supported|available|allowed|found)|unsupported|requires|conflicts",
            r"already (attached|in use)",
            r"bound to",
            r"romfile|rom file",
            # errno, in the C library's words: not there, not allowed, not enough, not like this
            r"Cannot allocate|No space left|Too many open|Resource temporarily unavailable",
            r"Device or resource busy|File exists|Permission denied|Operation not permitted",
            r"No such file|Invalid argument|Inappropriate ioctl|not implemented|Bad address",
        )
    ),
    re.IGNORECASE,
)
# What no device of a guest has a part in, wherever it is said.
_PLATFORM = re.compile(
    "|".join(
        (
            r"\bsev\b|\bsev[-_]|/dev/sev|\bsnp[-_ ]|fw_error",
            r"\btdx\b|\btdx[-_]|KVM_TDX|\bTDVF\b|quote",
            r"cpuid|host doesn't support|CPU model|host CPU|phys-bits|x2apic",
            r"kvm_|-accel kvm|/dev/kvm|initialize kvm|KVM_",
            r"guest memory|memory[-_]backend|guest_memfd|out of memory|Cannot allocate memory",
            r"preallocat|backing store|mlock|lock memory|RLIMIT",
        )
    ),
    re.IGNORECASE,
)


def speaks_of_platform(words: str) -> bool:
    """Whether they name the processor, its firmware, KVM or the host's memory."""
    return any(_PLATFORM.search(line) for line in _complaints(words))


def accuse(words: str) -> bool:
    """Whether they say of a device that it fails, by itself."""
    return bool(_accusations(words))


def accused(words: str, devices: Collection[Bdf]) -> tuple[Bdf, ...]:
    """Those of the devices that are said to fail by themselves: all, if it is not said which."""
    against = _accusations(words)
    named = {bdf for bdf in devices if any(bdf in line for line in against)}
    return tuple(sorted(named or devices)) if against else ()


def _accusations(words: str) -> list[str]:
    lines = list(_complaints(words))
    if any(_PLATFORM.search(line) for line in lines):
        return []
    return [line for line in lines if _OF_A_DEVICE.search(line) and not _HOSTS_DOING.search(line)]


def _complaints(words: str) -> Iterator[str]:
    """Its lines, without remarks, and without the argument that each is about."""
    for line in words.splitlines():
        if not _REMARK.search(line):
            yield _ARGUMENT.sub("", line)
