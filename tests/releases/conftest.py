"""Images are made once; sources and stores are each test's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agent.releases.build import Image
from agent.releases.cache import Cache
from agent.releases.source import Source
from agent.releases.store import ReleaseStore
from tests.fakes.release_parts import make_image

MakeStore = Callable[..., ReleaseStore]


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Image]:
    """Three images of one size and other content."""
    base = tmp_path_factory.mktemp("images")
    return {
        name: make_image(base / name, f"v0.11.{number}", seed=name.encode())
        for number, name in enumerate("abc")
    }


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


@pytest.fixture
def make_store(tmp_path: Path, executor: ThreadPoolExecutor) -> MakeStore:
    """A store over a source; every one of a test shares its cache directory, as restarts do."""

    def make(
        source: Source | None,
        *,
        max_bytes: int = 1 << 30,
        cache: Path | None = None,
        **more: object,
    ) -> ReleaseStore:
        cached = Cache(cache or tmp_path / "cache", max_bytes)
        return ReleaseStore(source, cached, executor, **more)  # type: ignore[arg-type]

    return make
