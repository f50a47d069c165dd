"""How much 64-bit address space a guest's firmware must set aside for its devices' BARs. Pure.

OVMF sizes its window for ordinary devices; a GPU with a BAR of 128 GiB would not fit and be left
without. Behind a bridge only 64-bit prefetchable BARs lie in that window (PCI-to-PCI bridge
specification), so that the others do not count.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from agent.model.pci import Bar

_MIB = 1 << 20
_REST_BYTES = 1 << 30  # the virtio devices', and room for their alignment


def window_mib(devices: Iterable[Sequence[Bar]]) -> int:
    """The size of the window in MiB, a power of two, which is also its alignment.

    Each device sits behind a root port of its own, whose part of the window is aligned to the
    largest of its BARs: an H100 (128 GiB + 32 MiB) needs 262144 MiB, eight of them 2097152.
    """
    end = 0
    for bars in sorted(map(_in_window, devices), key=max, reverse=True):
        largest = max(bars)
        end = -(-end // largest) * largest + sum(bars)
    return 1 << (-(-(end + _REST_BYTES) // _MIB) - 1).bit_length()


def _in_window(bars: Sequence[Bar]) -> list[int]:
    """Their sizes; a bridge with none of them has the least part that there is."""
    sizes = [
        bar.size_bytes for bar in bars if bar.is_64bit and bar.prefetchable and bar.size_bytes
    ]
    return sizes or [_MIB]
