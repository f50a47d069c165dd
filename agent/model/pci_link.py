"""Whether a PCIe link is as good as it can be: the one judge of it. Pure.

What is not known is neither good nor bad: whoever asks gets None, and `unknown_link` tells what
that hides.
"""

from __future__ import annotations

from agent.model.pci import Link

_ASLEEP = frozenset({"D3hot", "D3cold"})
_BUSY_PERCENT = 50.0  # a GPU that works this much has its link at full speed


def lost_lanes(link: Link) -> str | None:
    """The sentence about lanes that both ends have and that did not train; else None."""
    if link.width is None or link.max_width is None or link.width >= link.max_width:
        return None
    return f"its link has {link.width} of {link.max_width} lanes"


def lowered_speed(link: Link, *, power_state: str | None = None) -> str | None:
    """The sentence about a link that runs slower than both ends can; else None.

    A GPU that sleeps has a slow link by design, of which there is nothing to say.
    """
    now, best = link.speed_gts, link.max_speed_gts
    if now is None or best is None or now >= best or power_state in _ASLEEP:
        return None
    return f"its link runs at {now:g} of {best:g} GT/s"


def should_be_fast(utilization_percent: float | None) -> bool:
    """Whether a GPU that is this busy has no reason to save power on its link."""
    return utilization_percent is not None and utilization_percent >= _BUSY_PERCENT


def unknown_link(link: Link) -> str | None:
    """What stays unseen of a link that tells too little; None if it tells enough."""
    if link.width is None or link.max_width is None:
        return "the lanes of its link are not told: lost ones would stay unseen"
    return None
