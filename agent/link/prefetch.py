"""Releases that the coordinator will ask for are fetched beforehand, one after the other.

It is a kindness, not a duty: nothing waits for it, and what cannot be fetched now is tried again.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from agent.errors import AgentError, describe
from agent.host.wake import Wake
from agent.model import ids
from agent.releases.port import Releases
from agent.wire.report import WantedTag

log = logging.getLogger(__name__)
_TRY_AGAIN_S = 60.0


class Prefetch:
    """Fetches what is wanted and not here."""

    def __init__(self, releases: Releases, *, try_again_s: float = _TRY_AGAIN_S) -> None:
        self._releases = releases
        self._try_again_s = try_again_s
        self._wanted: tuple[WantedTag, ...] = ()
        self._here: set[WantedTag] = set()
        self._wakeup = Wake()

    def want(self, tags: Sequence[WantedTag]) -> None:
        """These, and no others any more."""
        if tuple(tags) != self._wanted:
            self._wanted = tuple(tags)
            self._here &= set(tags)
            self._wakeup.notify()

    async def keep(self) -> None:
        """Fetch what is wanted, for ever."""
        while True:
            seen = self._wakeup.count
            for tag in self._wanted:
                if tag not in self._here and await self._fetch(tag):
                    self._here.add(tag)
                if self._wakeup.count != seen:
                    break  # others are wanted now
            else:
                await self._wakeup.beyond(seen, self._try_again_s)

    async def _fetch(self, wanted: WantedTag) -> bool:
        try:
            repo, tag = ids.parse_repo(wanted.repo), ids.parse_tag(wanted.tag)
            release = await self._releases.resolve(repo, tag)
            if self._releases.local(release) is None:
                await self._releases.fetch(release)
                log.info("release fetched beforehand", extra={"repo": repo, "tag": tag})
        except (AgentError, ValueError, OSError) as error:
            told = {"repo": wanted.repo[:80], "tag": wanted.tag[:80], "error": describe(error)}
            log.warning("wanted release not fetched", extra=told)
            return False
        return True
