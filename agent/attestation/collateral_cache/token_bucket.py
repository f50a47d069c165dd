"""How often one peer may ask: a bucket each, filled as time passes. Pure.

Peers are addresses; the table is bounded, those longest silent going first, so that many peers
cost no more than their number in it.
"""

from __future__ import annotations

from collections import OrderedDict

BURST = 10
EVERY_S = 3.0
MAX_PEERS = 1024


class TokenBuckets:
    """`burst` questions at once, then one `every_s` seconds."""

    def __init__(
        self, *, burst: int = BURST, every_s: float = EVERY_S, max_peers: int = MAX_PEERS
    ) -> None:
        self._burst = burst
        self._every_s = every_s
        self._max_peers = max_peers
        self._full_at: OrderedDict[str, float] = OrderedDict()

    def wait_s(self, peer: str, now_s: float) -> float:
        """0 if this peer may ask now, which is then counted; else how long it has to wait."""
        full_at = max(self._full_at.pop(peer, now_s), now_s)
        over_s = full_at - now_s - (self._burst - 1) * self._every_s
        if over_s <= 0:
            full_at += self._every_s
        self._full_at[peer] = full_at
        if len(self._full_at) > self._max_peers:
            self._full_at.popitem(last=False)
        return max(over_s, 0.0)
