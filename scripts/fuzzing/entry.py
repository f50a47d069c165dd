"""One way in by which bytes of others reach a parser."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from agent.attestation.evidence import EvidenceError

Parse = Callable[[bytes], object]


@dataclass(frozen=True, slots=True)
class Entry:
    """`parse` may raise what `refuses` says, alone. `seeds`: bytes that it reads, made when asked
    for.
    """

    parse: Parse
    seeds: Callable[[], list[bytes]]
    refuses: tuple[type[Exception], ...] = (EvidenceError,)

    def holds(self, data: bytes) -> None:
        """Raises whatever the parser must not raise."""
        try:
            self.parse(data)
        except self.refuses as error:
            str(error)
