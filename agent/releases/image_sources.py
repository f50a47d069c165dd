"""Where an image's files may come from: the release source, then `releases.image_sources`.

Nothing else is ever asked. What a workload's config says of it (`cvm-source.artifacts`) opens no
place: it is compared with the configuration, and named where that does not have it. Every image is
believed by its hashes alone, wherever it came from.

At the vendor's there are `tinfoil-inference-v<version>` and a suffix, right under the URL; it is
not asked for what is not called by a version: nobody else's names become known there.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from urllib.parse import urlsplit

from agent.config import VENDOR_IMAGES
from agent.releases.layout import VERSION
from agent.releases.naming import public_name
from agent.releases.port import ReleaseSourceError
from agent.releases.source import Found, Source, open_source
from agent.strict_yaml import StrictYamlError, load_strict_yaml

_MAX_URL = 300


@dataclass(frozen=True, slots=True)
class ImageSource:
    """One of `releases.image_sources`, as it was configured and opened."""

    text: str
    source: Source

    def paths(self, name: str) -> tuple[str, ...]:
        """Where it may have an artifact of that name."""
        if self.text.rstrip("/") != VENDOR_IMAGES:
            return (name, public_name(name))
        return (public_name(name),) if VERSION.fullmatch(name.rpartition(".")[0]) else ()


@dataclass(frozen=True, slots=True)
class Located:
    """An artifact that was found. `origin` tells it from those of other sources."""

    source: Source
    found: Found
    origin: str


class ImageSources:
    """The places of one host, in the order in which they are asked."""

    def __init__(self, releases: Source | None, others: Sequence[ImageSource] = ()) -> None:
        self.releases = releases
        self._others = others

    async def find(self, name: str, paths: Iterable[str]) -> Located | None:
        """The first that there is: at the release source by these paths, elsewhere by its name.

        Raises ReleaseSourceError where a place cannot tell, or there is none.
        """
        if self.releases is not None:
            found = await self.releases.find(paths)
            if found is not None:
                return Located(self.releases, found, found.path)
        elif not self._others:
            raise ReleaseSourceError("no source of releases is configured (releases.source)")
        for one in self._others:
            try:
                found = await one.source.find(one.paths(name))
            except ReleaseSourceError as error:
                raise ReleaseSourceError(
                    f"{name} is not at the release source, and releases.image_sources cannot "
                    f"tell: {error}"
                ) from error
            if found is not None:
                return Located(one.source, found, f"{one.text} {found.path}")
        return None

    def asked(self, config: bytes) -> str:
        """For an error: where else it was looked for, and what would have to be configured."""
        said = "".join(f", nor at {one.text}" for one in self._others)
        place = _named_place(config)
        if place is None or any(_same(place, one.text) for one in self._others):
            return said
        return (
            f"{said}; its config has its image at {place} (cvm-source.artifacts), which is none "
            "of releases.image_sources: add it there to have images fetched from it"
        )

    async def close(self) -> None:
        """Close the connections of all of them."""
        if self.releases is not None:
            await self.releases.close()
        for one in self._others:
            await one.source.close()


def open_image_sources(
    texts: Iterable[str], executor: Executor, tls: ssl.SSLContext | None = None
) -> tuple[ImageSource, ...]:
    """What the configuration names. Raises ReleaseSourceError for what is no source."""
    field = "releases.image_sources"
    return tuple(ImageSource(one, open_source(one, executor, tls, field=field)) for one in texts)


def _named_place(config: bytes) -> str | None:
    """The https URL that a config says its image is at; None if it says nothing of the kind."""
    try:
        root = load_strict_yaml(config)
    except StrictYamlError:
        return None
    source = root.get("cvm-source") if isinstance(root, dict) else None
    place = source.get("artifacts") if isinstance(source, dict) else None
    if not isinstance(place, str) or len(place) > _MAX_URL or not place.isascii():
        return None
    try:
        parts = urlsplit(place)
    except ValueError:
        return None
    plain = place.isprintable() and " " not in place and "@" not in place
    bare = not (parts.query or parts.fragment)
    return place if parts.scheme == "https" and parts.netloc and plain and bare else None


def _same(one: str, other: str) -> bool:
    def plain(text: str) -> tuple[str, str, str]:
        parts = urlsplit(text)
        netloc = parts.netloc.lower().removesuffix(":443")
        return parts.scheme, netloc, parts.path.rstrip("/")

    return plain(one) == plain(other)
