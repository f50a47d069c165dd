"""The GPUs that NVML was asked about in vain: each is left alone for a while, longer each time.

Pure. So one GPU that hangs costs the others nothing, and a driver that cannot initialise one does
not try it at every look.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from agent.inventory.nvml.values import NvmlSilence
from agent.model.clock import Instant
from agent.model.ids import Bdf

_FIRST_S, _AT_MOST_S = 5.0, 300.0
# NVML knows no such GPU (NVML_ERROR_INVALID_ARGUMENT, _NOT_FOUND, _GPU_NOT_FOUND).
NOT_THERE = frozenset({2, 6, 28})


@dataclass(frozen=True, slots=True)
class _Rest:
    """`error`: NVML's; None if the call hung. `tries`: how often it was in vain."""

    error: int | None
    tries: int
    until: Instant


class Resting:
    """By BDF."""

    def __init__(self) -> None:
        self._rests: dict[Bdf, _Rest] = {}

    def add(self, bdf: Bdf, now: Instant, error: int | None = None) -> None:
        """It was asked about in vain. `error`: NVML's refusal; None if a call about it hung."""
        before = self._rests.get(bdf)
        tries = before.tries + 1 if before else 1
        wait_s = min(_FIRST_S * 2 ** min(tries - 1, 10), _AT_MOST_S)
        self._rests[bdf] = _Rest(error, tries, now.plus(wait_s))

    def remove(self, bdf: Bdf) -> None:
        """It has answered."""
        self._rests.pop(bdf, None)

    def keep_only(self, gpus: Collection[Bdf]) -> None:
        """The driver has no others any more."""
        self._rests = {bdf: rest for bdf, rest in self._rests.items() if bdf in gpus}

    @property
    def hangs(self) -> bool:
        """Whether a call about any of them hung."""
        return any(rest.error is None for rest in self._rests.values())

    def turn(self, gpus: Collection[Bdf], now: Instant) -> list[Bdf]:
        """Whom to ask, in order: those that answer, and last one that has rested long enough."""
        well = sorted(bdf for bdf in gpus if bdf not in self._rests)
        rested = [
            bdf for bdf, rest in self._rests.items() if bdf in gpus and now.reached(rest.until)
        ]
        return well + sorted(rested, key=lambda bdf: (self._rests[bdf].tries, bdf))[:1]

    def needs_new_process(self, bdf: Bdf) -> bool:
        """Whether NVML did not know it: it learns of a GPU that came later when it is loaded."""
        return bdf in self._rests and self._rests[bdf].error in NOT_THERE

    def silent(self) -> tuple[NvmlSilence, ...]:
        """All that NVML tells nothing of; of one that it does not know when two loads agree."""
        return tuple(
            NvmlSilence(bdf=bdf, error=rest.error)
            for bdf, rest in sorted(self._rests.items())
            if rest.error not in NOT_THERE or rest.tries > 1
        )
