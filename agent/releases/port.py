"""Where releases come from, and how their artifacts become local and trusted."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Protocol

import msgspec

from agent.errors import AgentError
from agent.model.release import LocalImage, Release


class ReleaseError(AgentError):
    """The release cannot be used: missing, half-published, inconsistent. The text says which."""

    @property
    def code(self) -> str:
        return "release_invalid"


class LaunchFormatError(ReleaseError):
    """The release is launched in a way that this agent, or this host, does not have."""

    @property
    def code(self) -> str:
        return "launch_format_unsupported"


class ReleaseNotFoundError(ReleaseError):
    """No such tag at the source."""


class ReleaseSourceError(AgentError):
    """The source itself cannot be reached or read just now; trying again may help."""

    @property
    def code(self) -> str:
        return "release_source_unavailable"


class KeptImage(msgspec.Struct, frozen=True, kw_only=True):
    """An artifact that is kept here, named by its content. `needed`: it may not be removed."""

    key: str
    bytes: int
    used_at: dt.datetime
    needed: bool


class Releases(Protocol):
    """Releases by repo and tag."""

    async def resolve(self, repo: str, tag: str, digest: str | None = None) -> Release:
        """Read and check the manifest. With `digest`, only those very bytes will do.

        Manifests that were resolved once are kept, so that a known digest resolves without the
        source. Raises ReleaseError or ReleaseSourceError: after 30 s at the latest.
        """
        ...

    async def require_signed(self, repo: str, tag: str, digest: str) -> None:
        """Ask a release that was taken before what a tag is asked today: for its signature.

        The one that was kept will do, so that the source need not answer. Returns at once where
        none is required. Raises ReleaseError `signature_required`, or ReleaseSourceError: after
        30 s at the latest.
        """
        ...

    async def fetch(self, release: Release) -> LocalImage:
        """Bring every artifact here, hashed and verity-checked.

        Idempotent, resumable, cancellable. Raises ReleaseError (what came is not what the
        manifest says), ReleaseSourceError, or StorageFullError from agent.host.files.
        """
        ...

    def local(self, release: Release) -> LocalImage | None:
        """The artifacts, if all are here and were verified; no I/O beyond stat."""
        ...

    def protect(self, digests: frozenset[str]) -> None:
        """Name the manifests whose artifacts the cache must never evict."""
        ...

    async def images(self) -> Sequence[KeptImage]:
        """What is kept, the least recently used first. Raises StorageError."""
        ...

    async def prune(self, unused_for_s: float) -> Sequence[KeptImage]:
        """Remove what nothing needs and nobody used for so long. Raises StorageError."""
        ...
