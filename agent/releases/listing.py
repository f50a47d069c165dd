"""The releases of a directory that is a source."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from agent.model.ids import parse_repo, parse_tag
from agent.releases.naming import MANIFEST
from agent.releases.port import ReleaseSourceError


def releases_in(root: Path) -> list[tuple[str, str]]:
    """(repo, tag) of each, sorted by repo, the newest manifest of it first."""
    if not root.is_dir():
        raise ReleaseSourceError(f"{root} is not a directory")
    found = sorted(_names(root), key=lambda one: (one[0], -one[2]))
    return [(repo, tag) for repo, tag, _ in found]


def _names(root: Path) -> Iterator[tuple[str, str, int]]:
    """NAME/TAG and OWNER/NAME/TAG; whatever else lies there is passed over."""
    for pattern in (f"*/*/{MANIFEST}", f"*/*/*/{MANIFEST}"):
        for path in root.glob(pattern):
            *repo, tag, _ = path.relative_to(root).parts
            try:
                yield parse_repo("/".join(repo)), parse_tag(tag), path.stat().st_mtime_ns
            except (ValueError, OSError):
                continue
