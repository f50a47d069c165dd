"""The bounded cache: what must stay stays, the least recently used goes, a full disk is told."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.host.files import StorageFullError
from agent.releases.build import Image
from agent.releases.cache import MAX_MANIFESTS, Cache
from agent.releases.https import HttpsSource
from agent.releases.naming import Kind
from agent.releases.partial import Partial
from agent.releases.port import ReleaseError, ReleaseSourceError
from agent.releases.source import DirectorySource
from agent.releases.store import ReleaseStore
from tests.fakes.https_files import HttpsFiles, serve_https
from tests.fakes.release_parts import CONFIG, publish

MakeStore = Callable[..., ReleaseStore]
Images = dict[str, Image]

TAGS = {"a": "v1.0.0", "b": "v1.1.0", "c": "v1.2.0"}


@pytest.fixture
def root(tmp_path: Path, images: Images) -> Path:
    for name, tag in TAGS.items():
        publish(tmp_path / "source", images[name], tag=tag, config=_config(images[name]))
    return tmp_path / "source"


def _config(image: Image) -> bytes:
    return CONFIG.replace(b"0.11.0", image.version.removeprefix("v").encode())


def size_of(image: Image) -> int:
    return sum(path.stat().st_size for path in image.files.values())


async def test_the_least_recently_used_release_is_evicted(
    images: Images, make_store: MakeStore, root: Path, executor: ThreadPoolExecutor
) -> None:
    store = make_store(DirectorySource(root, executor), max_bytes=2 * size_of(images["a"]) + 100)
    a, b, c = [await store.resolve("hello", tag) for tag in TAGS.values()]
    await store.fetch(a)
    await store.fetch(b)
    await store.fetch(a)  # used again: b is older now
    await store.fetch(c)
    assert store.local(a) is not None
    assert store.local(b) is None
    assert store.local(c) is not None


@pytest.mark.parametrize("fault", ["another file", "a size that none has"])
async def test_nothing_is_evicted_for_what_the_manifest_does_not_name(
    images: Images, make_store: MakeStore, root: Path, executor: ThreadPoolExecutor, fault: str
) -> None:
    store = make_store(DirectorySource(root, executor), max_bytes=size_of(images["a"]) + 100)
    a, b = [await store.resolve("hello", TAGS[name]) for name in "ab"]
    await store.fetch(a)
    for path in (root / "images").glob(f"{images['b'].version}.*"):
        size = path.stat().st_size
        path.unlink()
        with path.open("wb") as file:
            file.truncate(size if fault == "another file" else 300 << 30)
    with pytest.raises((ReleaseError, StorageFullError)):
        await store.fetch(b)
    assert store.local(a) is not None


async def test_a_symlink_out_of_the_source_is_not_followed_and_one_within_it_is(
    images: Images, make_store: MakeStore, root: Path, tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    manifest = root / "hello" / TAGS["a"] / "tinfoil-deployment.json"
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("root:hunter2:0:0")
    (outside / "tinfoil-deployment.json").write_bytes(manifest.read_bytes())
    store = make_store(DirectorySource(root, executor))
    for tag, target in (("v7", outside / "secret"), ("v8", Path("../../../outside/secret"))):
        (root / "hello" / tag).mkdir()
        (root / "hello" / tag / manifest.name).symlink_to(target)
    (root / "hello" / "v9").symlink_to(outside)
    for tag in ("v7", "v8", "v9"):
        with pytest.raises(ReleaseSourceError, match="a symlink leads out of the source") as told:
            await store.resolve("hello", tag)
        assert "hunter2" not in str(told.value)
    (root / "hello" / "v1.0.99").symlink_to(TAGS["a"])
    assert (await store.resolve("hello", "v1.0.99")).tag == "v1.0.99"


async def test_what_is_protected_is_never_evicted(
    images: Images, make_store: MakeStore, root: Path, executor: ThreadPoolExecutor
) -> None:
    size = size_of(images["a"])
    store = make_store(DirectorySource(root, executor), max_bytes=2 * size + 100)
    a, b, c = [await store.resolve("hello", tag) for tag in TAGS.values()]
    await store.fetch(a)
    await store.fetch(b)
    store.protect(frozenset({a.digest}))
    await store.fetch(c)
    assert store.local(a) is not None
    assert store.local(b) is None
    store.protect(frozenset({a.digest, c.digest}))
    with pytest.raises(StorageFullError, match="the release cache may hold") as full:
        await store.fetch(b)
    assert full.value.code == "disk_full"
    assert store.local(a) is not None
    assert store.local(c) is not None
    store.protect(frozenset())
    assert await store.fetch(b) == store.local(b)


async def test_protection_holds_after_a_restart_without_any_resolve(
    images: Images, make_store: MakeStore, root: Path, executor: ThreadPoolExecutor
) -> None:
    bound = size_of(images["a"]) + 100
    source = DirectorySource(root, executor)
    first = make_store(source, max_bytes=bound)
    a = await first.resolve("hello", TAGS["a"])
    await first.fetch(a)
    later = make_store(source, max_bytes=bound)
    later.protect(frozenset({a.digest}))
    b = await later.resolve("hello", TAGS["b"])
    with pytest.raises(StorageFullError):
        await later.fetch(b)
    assert later.local(a) is not None


async def test_nothing_is_evicted_while_a_protected_manifest_is_unknown(
    images: Images, make_store: MakeStore, root: Path, executor: ThreadPoolExecutor
) -> None:
    store = make_store(DirectorySource(root, executor), max_bytes=size_of(images["a"]) + 100)
    a, b = [await store.resolve("hello", TAGS[name]) for name in "ab"]
    await store.fetch(a)
    store.protect(frozenset({"0" * 64}))
    with pytest.raises(StorageFullError):
        await store.fetch(b)
    assert store.local(a) is not None


@pytest.fixture
async def server(root: Path, tmp_path: Path) -> AsyncIterator[HttpsFiles]:
    async with serve_https(root, tmp_path) as serving:
        yield serving


async def test_what_another_fetch_needs_is_not_evicted_by_this_one(
    images: Images, make_store: MakeStore, server: HttpsFiles, executor: ThreadPoolExecutor
) -> None:
    source = HttpsSource(server.url, executor, server.trust)
    store = make_store(source, max_bytes=size_of(images["a"]) + 5_000_000)
    a, b = [await store.resolve("hello", TAGS[name]) for name in "ab"]
    server.holds["v0.11.0.raw"] = 1 << 20
    fetching = asyncio.create_task(store.fetch(a))
    await server.held.wait()  # kernel and initrd of a are in place, its disk is coming
    with pytest.raises(StorageFullError):
        await store.fetch(b)
    server.go_on.set()
    assert await fetching == store.local(a)
    assert await store.fetch(b) == store.local(b)
    assert store.local(a) is None
    await source.close()


async def test_an_artifact_whose_size_nobody_told_still_counts_against_the_bound(
    images: Images, make_store: MakeStore, server: HttpsFiles, executor: ThreadPoolExecutor
) -> None:
    server.lengths = False
    source = HttpsSource(server.url, executor, server.trust)
    store = make_store(source, max_bytes=size_of(images["a"]) + 100)
    a, b = [await store.resolve("hello", TAGS[name]) for name in "ab"]
    await store.fetch(a)
    await store.fetch(b)
    assert store.local(a) is None
    assert store.local(b) is not None
    store.protect(frozenset({b.digest}))
    with pytest.raises(StorageFullError):
        await store.fetch(a)
    assert store.local(b) is not None
    await source.close()


def test_zeros_of_a_download_take_no_room_and_are_there_all_the_same(tmp_path: Path) -> None:
    data = b"head" + bytes(6 << 20) + b"middle" + bytes(3 << 20)
    path = tmp_path / "partial" / "image"
    with Partial(path, "image", 1 << 30) as partial:
        for at in range(0, len(data), 1 << 20):
            partial.write(data[at : at + (1 << 20)])
        assert partial.offset == len(data)
    assert path.read_bytes() == data
    assert path.stat().st_blocks * 512 < 1 << 20
    with Partial(path, "image", 1 << 30) as again:
        again.restart(None)
        again.write(data[:4])
    assert path.read_bytes() == b"head"


async def test_idle_partial_downloads_count_and_are_evicted(
    images: Images, make_store: MakeStore, root: Path, executor: ThreadPoolExecutor, tmp_path: Path
) -> None:
    left = tmp_path / "cache" / "partial" / ("sha256-" + "0" * 64)
    left.parent.mkdir(parents=True)
    left.write_bytes(bytes(4_000_000))
    os.utime(left, (1, 1))
    store = make_store(DirectorySource(root, executor), max_bytes=size_of(images["a"]) + 100)
    await store.fetch(await store.resolve("hello", TAGS["a"]))
    assert not left.exists()


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    sizes=st.lists(st.integers(0, 5000), max_size=8),
    keep=st.sets(st.integers(0, 7)),
    wanted=st.integers(0, 9000),
    bound=st.integers(0, 12_000),
)
def test_room_is_made_within_the_bound_or_refused_and_what_must_stay_stays(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
    keep: set[int],
    wanted: int,
    bound: int,
) -> None:
    cache = Cache(tmp_path_factory.mktemp("cache"), bound)
    keys = [f"sha256-{index}" for index in range(len(sizes))]
    for index, (key, size) in enumerate(zip(keys, sizes, strict=True)):
        path = cache.path(key)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(size))
        cache.record(key)
        os.utime(path.with_name(key + ".verified"), (index + 1, index + 1))
    kept = frozenset(key for index, key in enumerate(keys) if index in keep)
    staying = sum(size for index, size in enumerate(sizes) if index in keep)
    try:
        cache.make_room({"sha256-new": wanted}, kept)
    except StorageFullError:
        assert staying + wanted > bound
        assert all(cache.exists(key) for key in keys)  # what cannot suffice destroys nothing
    else:
        assert (
            sum(s for k, s in zip(keys, sizes, strict=True) if cache.exists(k)) + wanted <= bound
        )
    assert all(cache.is_verified(key) for key in kept)
    evicted = [key for key in keys if key not in kept and not cache.exists(key)]
    candidates = [key for key in keys if key not in kept]
    assert evicted == candidates[: len(evicted)]  # oldest first


def test_old_manifests_go_but_not_the_protected_and_not_the_newest(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 1 << 20)
    digests = []
    for number in range(MAX_MANIFESTS + 20):
        data = b"%d" % number
        digest = hashlib.sha256(data).hexdigest()
        digests.append(digest)
        cache.keep_manifest(data, frozenset(digests[:2]))
        os.utime(tmp_path / "manifests" / f"{digest}.json", (number + 1, number + 1))
        cache.keep_signature(digest, data)
    kept = {digest for digest in digests if cache.manifest(digest) is not None}
    signed = {digest for digest in digests if cache.signature(digest) is not None}
    assert signed == kept  # a signature goes with its manifest
    cache.keep_signature(next(iter(set(digests) - kept)), b"of one that is gone")
    assert len(list((tmp_path / "manifests").iterdir())) == 2 * len(kept)
    assert set(digests[:2]) <= kept
    assert set(digests[30:]) <= kept
    assert len(kept) <= MAX_MANIFESTS + 1


def test_what_a_killed_write_left_is_cleaned(tmp_path: Path) -> None:
    for name in ("artifacts", "manifests"):
        (tmp_path / name).mkdir()
        (tmp_path / name / ".0123456789abcdef.new").write_bytes(b"half")
    cache = Cache(tmp_path, 1 << 20)
    cache.make_room({}, None)
    cache.keep_manifest(b"{}", frozenset())
    assert list(tmp_path.glob("*/.*")) == []


def test_a_download_that_was_about_to_be_put_in_place_is_gone_on_with(tmp_path: Path) -> None:
    """It is read-only by then, which matters to whoever is not root."""
    path = tmp_path / "partial" / "sha256-00"
    with Partial(path, "image", 100) as partial:
        partial.restart("v1")
        partial.write(b"abc")
    path.chmod(0o444)
    with Partial(path, "image", 100) as again:
        again.recall(lambda: None)
        assert again.offset == 3
        again.write(b"d")
    assert path.read_bytes() == b"abcd"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 10 MiB: one image has room, two have not."""
    disk = tmp_path / "small"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=10m,mode=0700", "ea-releases-test", str(disk)]
    subprocess.run(mount, check=True)
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.root
async def test_a_full_disk_is_told_before_anything_is_downloaded(
    images: Images,
    make_store: MakeStore,
    root: Path,
    executor: ThreadPoolExecutor,
    small_disk: Path,
) -> None:
    (small_disk / "other").write_bytes(bytes(3 << 20))
    cache = small_disk / "cache"
    store = make_store(DirectorySource(root, executor), cache=cache)
    a = await store.resolve("hello", TAGS["a"])
    with pytest.raises(StorageFullError, match="bytes are needed"):
        await store.fetch(a)
    assert store.local(a) is None
    (small_disk / "other").unlink()
    assert await store.fetch(a) == store.local(a)


@pytest.mark.root
async def test_unprotected_artifacts_make_way_when_the_disk_is_full(
    images: Images,
    make_store: MakeStore,
    root: Path,
    executor: ThreadPoolExecutor,
    small_disk: Path,
) -> None:
    store = make_store(DirectorySource(root, executor), cache=small_disk / "cache")
    a, b = [await store.resolve("hello", TAGS[name]) for name in "ab"]
    await store.fetch(a)
    await store.fetch(b)
    assert store.local(a) is None
    assert store.local(b) is not None


@pytest.mark.root
@pytest.mark.parametrize("free", range(0, 10 << 20, 611_111))
async def test_a_disk_that_fills_up_at_any_write_leaves_no_broken_state(
    images: Images, tmp_path: Path, executor: ThreadPoolExecutor, small_disk: Path, root: Path,
    free: int,
) -> None:  # fmt: skip
    """The disk fills behind our back: at a manifest, a partial download, or a stamp."""
    cache = Cache(small_disk / "cache", 1 << 30)
    store = ReleaseStore(_Filling(root, executor, small_disk, free), cache, executor)
    try:
        a = await store.resolve("hello", TAGS["a"])
        await store.fetch(a)
    except StorageFullError:
        assert store.local(await store.resolve("hello", TAGS["a"])) is None
    (small_disk / "filler").unlink(missing_ok=True)
    a = await store.resolve("hello", TAGS["a"])
    image = await store.fetch(a)
    for kind, path in zip(Kind, (image.kernel, image.initrd, image.root_disk), strict=True):
        assert path.read_bytes() == images["a"].files[kind].read_bytes()


class _Filling(DirectorySource):
    """A source that lets somebody else fill the disk just before bytes are asked for."""

    def __init__(self, root: Path, executor: ThreadPoolExecutor, disk: Path, free: int) -> None:
        super().__init__(root, executor)
        self._disk = disk
        self._free = free
        self._filled = False

    async def copy(self, found: object, sink: object) -> None:
        if not self._filled:
            self._filled = True
            status = os.statvfs(self._disk)
            room = status.f_bavail * status.f_frsize
            (self._disk / "filler").write_bytes(bytes(max(0, room - self._free)))
        await super().copy(found, sink)  # type: ignore[arg-type]


async def test_pruning_removes_what_nothing_needs_and_nobody_used_for_so_long(
    images: Images, make_store: MakeStore, root: Path, executor: ThreadPoolExecutor
) -> None:
    store = make_store(DirectorySource(root, executor), max_bytes=4 * size_of(images["a"]))
    a, b, c = [await store.resolve("hello", tag) for tag in TAGS.values()]
    for release in (a, b, c):
        await store.fetch(release)
    store.protect(frozenset({b.digest}))
    kept = await store.images()
    assert sum(one.bytes for one in kept) == sum(size_of(image) for image in images.values())
    assert [one.needed for one in kept] == [False] * 3 + [True] * 3 + [False] * 3
    assert await store.prune(unused_for_s=3600) == []
    gone = await store.prune(unused_for_s=0)
    assert {one.key for one in gone} == {one.key for one in kept if not one.needed}
    assert (store.local(a), store.local(c)) == (None, None)
    assert store.local(b) is not None


async def test_a_manifest_that_is_protected_and_not_known_keeps_everything(
    images: Images, make_store: MakeStore, root: Path, executor: ThreadPoolExecutor
) -> None:
    store = make_store(DirectorySource(root, executor), max_bytes=4 * size_of(images["a"]))
    release = await store.resolve("hello", TAGS["a"])
    await store.fetch(release)
    store.protect(frozenset({"f" * 64}))
    assert await store.prune(unused_for_s=0) == []
    assert store.local(release) is not None
