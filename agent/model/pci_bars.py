"""Whether a device has the address space that it needs: the one judge of it. Pure.

The kernel keeps a region for which the firmware left no room as unset, or forgets it. Every GPU of
NVIDIA's has registers and beside them an aperture to its memory, of 64 MiB at least.
"""

from __future__ import annotations

from agent.model.pci import Bar, PciKind

_APERTURE_BYTES = 64 << 20
SPACE_MEND = "turn above-4G decoding on and enlarge the MMIO window in the firmware, then reboot"


def missing_space(kind: PciKind, bars: tuple[Bar, ...] | None) -> str | None:
    """What is missing, as a sentence; None if nothing is, or nothing is known."""
    if bars is None:
        return None
    unset = [str(bar.index) for bar in bars if not bar.assigned]
    if unset:
        return f"no address was found for its BAR {', '.join(unset)}"
    if not bars:
        return "no BAR of it has an address"
    if kind is PciKind.GPU and not _has_aperture(bars):
        return "the BAR of its memory has no address"
    return None


def _has_aperture(bars: tuple[Bar, ...]) -> bool:
    registers = min(bar.index for bar in bars)
    return any(bar.index > registers and bar.size_bytes >= _APERTURE_BYTES for bar in bars)
