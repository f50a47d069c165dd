"""Small answers of a server that are kept with their tag: asked again, it need not send them."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

_MOST = 16
_MAX_BYTES = 256 << 10  # of one that is kept


@dataclass(frozen=True, slots=True)
class Answered:
    """What came last, and the entity tag that it came with (RFC 9110, section 8.8.3)."""

    tag: str
    data: bytes


class Answers:
    """By path, the newest few."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Answered] = OrderedDict()

    def of(self, path: str) -> Answered | None:
        """What is kept of it."""
        return self._kept.get(path)

    def put(self, path: str, answered: Answered | None) -> None:
        """Keep it, or forget what was kept."""
        self._kept.pop(path, None)
        if answered is not None and len(answered.data) <= _MAX_BYTES:
            self._kept[path] = answered
            while len(self._kept) > _MOST:
                self._kept.popitem(last=False)


@runtime_checkable
class Remembering(Protocol):
    """A source whose manifests have tags of their own: an earlier answer can be put back."""

    def known(self, repo: str, tag: str) -> Answered | None:
        """What the manifest of a release was answered with last."""
        ...

    def remember(self, repo: str, tag: str, answered: Answered) -> None:
        """Ask for the manifest only if it is another by now."""
        ...
