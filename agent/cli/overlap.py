"""What is new in a log of which only the newest part can be seen. Pure."""

from __future__ import annotations

_ANCHOR = 32


def news(seen: str, now: str) -> str | None:
    """What `now` holds beyond `seen`, both being the ends of one growing log.

    None: the two do not meet, so that something between them was missed. Where a log repeats
    itself through a whole window the least that fits is taken to be new.
    """
    if not seen or now.startswith(seen):
        return now[len(seen) :]
    anchor = now[:_ANCHOR]
    at = seen.find(anchor)
    while at >= 0:
        common = len(seen) - at
        if now.startswith(seen[at:]):
            return now[common:]
        at = seen.find(anchor, at + 1)
    for common in range(min(_ANCHOR, len(now), len(seen)) - 1, 0, -1):
        if now.startswith(seen[-common:]):
            return now[common:]
    return None
