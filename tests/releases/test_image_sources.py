"""Images come from the release source or from `releases.image_sources`, and from nowhere else."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.config import VENDOR_IMAGES, ReleasesConfig
from agent.releases.build import Image
from agent.releases.image_sources import ImageSource, open_image_sources
from agent.releases.naming import Kind
from agent.releases.port import ReleaseError, ReleaseSourceError
from agent.releases.source import open_source
from agent.releases.store import ReleaseStore, open_releases
from tests.fakes.https_files import HttpsFiles, serve_https
from tests.fakes.release_parts import CONFIG, publish

MakeStore = Callable[..., ReleaseStore]
Images = dict[str, Image]


@dataclass
class Mirror:
    """An image source as the vendor's is laid out, behind https."""

    served: HttpsFiles
    sources: tuple[ImageSource, ...]

    @property
    def url(self) -> str:
        return f"{self.served.url}/cvm"


@pytest.fixture
async def mirror(tmp_path: Path, executor: ThreadPoolExecutor) -> AsyncIterator[Mirror]:
    root = tmp_path / "mirror"
    (root / "cvm").mkdir(parents=True)
    async with serve_https(root, tmp_path) as served:
        sources = open_image_sources([f"{served.url}/cvm"], executor, served.trust)
        yield Mirror(served, sources)
        for one in sources:
            await one.source.close()


@asynccontextmanager
async def published(
    tmp_path: Path,
    executor: ThreadPoolExecutor,
    make_store: MakeStore,
    image: Image,
    *,
    config: bytes = CONFIG,
    sources: tuple[ImageSource, ...] = (),
    at: Path | None = None,
) -> AsyncIterator[ReleaseStore]:
    """A release whose artifacts were moved to `at`, under the vendor's names."""
    root = tmp_path / "source"
    publish(root, image, config=config)
    if at is not None:
        for kind in Kind:
            name = f"{image.version}.{kind}"
            (root / "images" / name).rename(at / f"tinfoil-inference-{name}")
    yield make_store(open_source(str(root), executor), image_sources=sources)


async def test_what_the_release_source_has_not_comes_from_an_image_source(
    tmp_path: Path, executor: ThreadPoolExecutor, make_store: MakeStore, images: Images,
    mirror: Mirror,
) -> None:  # fmt: skip
    at = tmp_path / "mirror" / "cvm"
    async with published(
        tmp_path, executor, make_store, images["a"], sources=mirror.sources, at=at
    ) as store:
        local = await store.fetch(await store.resolve("hello", "v1.0.0"))
        assert local.kernel.read_bytes() == images["a"].files[Kind.KERNEL].read_bytes()
    # What is here stays in use when its source is no longer configured.
    later = make_store(open_source(str(tmp_path / "source"), executor))
    assert later.local(await later.resolve("hello", "v1.0.0")) == local


async def test_an_image_source_is_not_asked_for_what_the_release_source_has(
    tmp_path: Path, executor: ThreadPoolExecutor, make_store: MakeStore, images: Images,
    mirror: Mirror,
) -> None:  # fmt: skip
    async with published(
        tmp_path, executor, make_store, images["a"], sources=mirror.sources
    ) as store:
        await store.fetch(await store.resolve("hello", "v1.0.0"))
    assert mirror.served.seen == []


@pytest.mark.parametrize("slash", ["", "/"])
async def test_an_image_that_a_config_has_elsewhere_is_refused_by_name_with_the_remedy(
    tmp_path: Path, executor: ThreadPoolExecutor, make_store: MakeStore, images: Images,
    mirror: Mirror, slash: str,
) -> None:  # fmt: skip
    """And is fetched as soon as the remedy was followed: the place itself opens nothing."""
    at = tmp_path / "mirror" / "cvm"
    own = f"cvm-source: {{repo: acme/cvm, artifacts: '{mirror.url}{slash}'}}\n".encode()
    async with published(
        tmp_path, executor, make_store, images["a"], config=CONFIG + own, at=at
    ) as store:
        with pytest.raises(
            ReleaseError, match=r"half-published: .*images/; its config"
        ) as refused:
            await store.resolve("hello", "v1.0.0")
        assert refused.value.code == "release_invalid"
        assert f"{mirror.url}{slash} (cvm-source.artifacts)" in str(refused.value)
        assert "releases.image_sources: add it there" in str(refused.value)
        assert mirror.served.seen == []
        remedied = make_store(
            open_source(str(tmp_path / "source"), executor), image_sources=mirror.sources
        )
        await remedied.fetch(await remedied.resolve("hello", "v1.0.0"))


@pytest.mark.parametrize(
    "place",
    ["http://a.example/x", "https://user:word@a.example/", "https://a.example/?word=1",
     "file:///etc", "https://[", 7, "https://a.example/" + "x" * 400, "https://a.example/é"],
)  # fmt: skip
async def test_a_place_that_is_no_plain_url_is_not_repeated(
    tmp_path: Path, executor: ThreadPoolExecutor, make_store: MakeStore, images: Images,
    place: object,
) -> None:  # fmt: skip
    own = f"cvm-source: {{repo: acme/cvm, artifacts: {place!r}}}\n".encode()
    async with published(
        tmp_path, executor, make_store, images["a"], config=CONFIG + own, at=tmp_path
    ) as store:
        with pytest.raises(ReleaseError, match=r"under images/$"):
            await store.resolve("hello", "v1.0.0")


async def test_what_is_nowhere_tells_where_it_was_looked_for(
    tmp_path: Path, executor: ThreadPoolExecutor, make_store: MakeStore, images: Images,
    mirror: Mirror,
) -> None:  # fmt: skip
    async with published(
        tmp_path, executor, make_store, images["a"], sources=mirror.sources, at=tmp_path
    ) as store:
        with pytest.raises(ReleaseError, match=f"under images/, nor at {mirror.url}$"):
            await store.resolve("hello", "v1.0.0")


async def test_an_image_source_that_cannot_tell_is_no_verdict_on_the_release(
    tmp_path: Path, executor: ThreadPoolExecutor, make_store: MakeStore, images: Images,
    mirror: Mirror,
) -> None:  # fmt: skip
    name = "tinfoil-inference-v0.11.0.vmlinuz"
    mirror.served.statuses = {("HEAD", name): 500}
    async with published(
        tmp_path, executor, make_store, images["a"], sources=mirror.sources, at=tmp_path
    ) as store:
        with pytest.raises(ReleaseSourceError, match=r"releases\.image_sources cannot tell"):
            await store.resolve("hello", "v1.0.0")


async def test_an_image_source_may_not_redirect_to_plain_http(
    tmp_path: Path, executor: ThreadPoolExecutor, make_store: MakeStore, images: Images,
    mirror: Mirror,
) -> None:  # fmt: skip
    mirror.served.redirects = {"v0.11.0.vmlinuz": "http://127.0.0.1/x"}
    async with published(
        tmp_path, executor, make_store, images["a"], sources=mirror.sources, at=tmp_path
    ) as store:
        with pytest.raises(ReleaseSourceError, match="something else than https"):
            await store.resolve("hello", "v1.0.0")


def test_the_vendor_hears_only_of_what_is_called_by_a_version(
    executor: ThreadPoolExecutor,
) -> None:
    (vendor,) = open_image_sources(ReleasesConfig().image_sources, executor)
    assert vendor.text == VENDOR_IMAGES
    assert vendor.paths("v0.11.0.initrd") == ("tinfoil-inference-v0.11.0.initrd",)
    assert vendor.paths("acme-secret-0.11.0.initrd") == ()
    (own,) = open_image_sources(["/srv/images"], executor)
    assert own.paths("acme.raw") == ("acme.raw", "tinfoil-inference-vacme.raw")


def test_what_is_no_source_is_named_by_its_field(tmp_path: Path) -> None:
    wrong = ReleasesConfig(image_sources=("http://a.example",))
    with pytest.raises(ReleaseSourceError, match=r"releases\.image_sources"):
        open_releases(wrong, state_dir=tmp_path)
