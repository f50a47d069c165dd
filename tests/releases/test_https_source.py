"""Downloads over real TLS: they resume, restart where they must, and end when told."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agent.model.release import Release
from agent.releases.build import Image
from agent.releases.https import HttpsSource
from agent.releases.naming import Kind
from agent.releases.port import ReleaseError, ReleaseSourceError
from agent.releases.store import ReleaseStore
from tests.fakes.https_files import HttpsFiles, serve_https
from tests.fakes.release_parts import publish

MakeStore = Callable[..., ReleaseStore]
Images = dict[str, Image]

MIB = 1 << 20
KERNEL = "v0.11.0.vmlinuz"
DISK = "v0.11.0.raw"


@pytest.fixture
async def server(tmp_path: Path, images: Images) -> AsyncIterator[HttpsFiles]:
    root = tmp_path / "source"
    publish(root, images["a"])
    async with serve_https(root, tmp_path) as serving:
        yield serving


@pytest.fixture
async def source(server: HttpsFiles, executor: ThreadPoolExecutor) -> AsyncIterator[HttpsSource]:
    opened = HttpsSource(server.url, executor, server.trust)
    yield opened
    await opened.close()


@pytest.fixture
async def store(source: HttpsSource, make_store: MakeStore) -> ReleaseStore:
    return make_store(source)


@pytest.fixture
async def release(store: ReleaseStore, server: HttpsFiles) -> Release:
    found = await store.resolve("hello", "v1.0.0")
    server.seen.clear()
    return found


def start(range_header: str | None) -> int:
    assert range_header is not None
    return int(range_header.removeprefix("bytes=").removesuffix("-"))


@pytest.mark.parametrize("name", [KERNEL, DISK])
async def test_a_download_that_breaks_goes_on_where_it_was(
    store: ReleaseStore, release: Release, server: HttpsFiles, name: str
) -> None:
    server.cuts[name] = [MIB + 70_000, 300_000]
    await store.fetch(release)
    first, second, third = server.gets(name)
    assert first is None
    assert 0 < start(second) < start(third)
    size = (server.root / "images" / name).stat().st_size
    assert size <= server.sent[name] <= size + 2 * MIB  # and not three times
    assert store.local(release) is not None


async def test_a_source_that_brings_nothing_more_is_an_error_and_what_came_is_kept(
    store: ReleaseStore, release: Release, server: HttpsFiles, make_store: MakeStore,
    source: HttpsSource,
) -> None:  # fmt: skip
    server.cuts[KERNEL] = [MIB + 100_000, 0]
    with pytest.raises(ReleaseSourceError, match=f"{KERNEL} cannot be read"):
        await store.fetch(release)
    assert store.local(release) is None
    later = make_store(source)  # as after a restart of the agent
    await later.fetch(release)
    assert start(server.gets(KERNEL)[-1]) > MIB
    assert later.local(release) is not None


async def test_a_source_that_dies_again_and_again_is_given_up(
    store: ReleaseStore, release: Release, server: HttpsFiles
) -> None:
    server.cuts[KERNEL] = [400_000] * 100  # its 3 MiB would take eight connections
    with pytest.raises(ReleaseSourceError):
        await store.fetch(release)
    assert len(server.gets(KERNEL)) <= 6
    server.cuts.clear()
    await store.fetch(release)


async def test_another_version_of_the_file_begins_from_nothing(
    store: ReleaseStore, release: Release, server: HttpsFiles
) -> None:
    path = server.root / "images" / KERNEL
    right = path.read_bytes()
    path.unlink()
    path.write_bytes(b"\0" * len(right))
    server.cuts[KERNEL] = [2 * MIB, 0]
    with pytest.raises(ReleaseSourceError):
        await store.fetch(release)
    path.write_bytes(right)
    os.utime(path, (1, 1))
    image = await store.fetch(release)
    assert image.kernel.read_bytes() == right


@pytest.mark.parametrize("lie", ["ranges", "etags"])
async def test_servers_that_cannot_resume_are_asked_for_all_of_it(
    store: ReleaseStore, release: Release, server: HttpsFiles, lie: str
) -> None:
    setattr(server, lie, False)
    server.cuts[KERNEL] = [2 * MIB]
    await store.fetch(release)
    assert store.local(release) is not None


@pytest.mark.parametrize("name", [KERNEL, DISK])
async def test_a_damaged_partial_download_is_noticed_and_done_again(
    store: ReleaseStore, release: Release, server: HttpsFiles, name: str, tmp_path: Path
) -> None:
    server.cuts[name] = [MIB + 200_000, 0]
    with pytest.raises(ReleaseSourceError):
        await store.fetch(release)
    [partial] = [
        path for path in (tmp_path / "cache" / "partial").iterdir() if path.suffix != ".from"
    ]
    with partial.open("r+b") as file:
        file.seek(MIB)
        file.write(b"damaged")
    await store.fetch(release)
    assert server.gets(name)[-1] is None
    assert store.local(release) is not None


async def test_a_partial_download_that_is_whole_already_is_taken(
    store: ReleaseStore, release: Release, server: HttpsFiles
) -> None:
    size = (server.root / "images" / KERNEL).stat().st_size
    server.cuts[KERNEL] = [size]
    server.statuses["GET", "v0.11.0.initrd"] = 500
    with pytest.raises(ReleaseSourceError):
        await store.fetch(release)
    server.statuses.clear()
    await store.fetch(release)
    assert len(server.gets(KERNEL)) == 1


async def test_more_than_the_server_announced_is_not_taken(
    source: HttpsSource, release: Release, make_store: MakeStore, server: HttpsFiles
) -> None:
    path = server.root / "images" / KERNEL
    whole = path.read_bytes()
    server.holds[KERNEL] = 0
    store = make_store(source)
    fetching = asyncio.create_task(store.fetch(release))
    await server.held.wait()  # its size was asked for, and its bytes are read by now
    path.unlink()
    path.write_bytes(whole + b"more")
    server.go_on.set()
    await fetching
    path.write_bytes(whole + b"more" * MIB)
    other = make_store(source, cache=server.root.parent / "other")
    with pytest.raises(ReleaseError, match="its SHA-256"):
        await other.fetch(release)


async def test_two_fetches_at_once_download_once(
    store: ReleaseStore, release: Release, server: HttpsFiles
) -> None:
    first, second = await asyncio.gather(store.fetch(release), store.fetch(release))
    assert first == second
    for kind in Kind:
        assert len(server.gets(f"v0.11.0.{kind}")) == 1


async def test_one_waiter_leaving_does_not_end_the_download_of_the_other(
    store: ReleaseStore, release: Release, server: HttpsFiles
) -> None:
    server.holds[KERNEL] = MIB
    leaving, staying = (asyncio.create_task(store.fetch(release)) for _ in range(2))
    await server.held.wait()
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    server.go_on.set()
    assert await staying == store.local(release)
    assert len(server.gets(KERNEL)) == 1


async def test_a_cancelled_fetch_ends_at_once_and_a_later_one_goes_on(
    store: ReleaseStore, release: Release, server: HttpsFiles, tmp_path: Path
) -> None:
    server.holds[DISK] = 2 * MIB
    fetching = asyncio.create_task(store.fetch(release))
    await server.held.wait()
    fetching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fetching
    assert [t for t in asyncio.all_tasks() if t.get_name().startswith("release artifact")] == []
    assert store.local(release) is None
    server.go_on.set()
    await store.fetch(release)
    assert store.local(release) is not None
    assert list((tmp_path / "cache" / "partial").iterdir()) == []


async def test_cancelled_when_the_verity_tree_is_computed_nothing_is_in_place(
    images: Images, tmp_path: Path, make_store: MakeStore, release: Release, store: ReleaseStore
) -> None:
    """Cancelled at many moments: whatever was reached, the next fetch is right."""
    for turns in range(0, 400, 23):
        fetching = asyncio.create_task(store.fetch(release))
        for _ in range(turns):
            await asyncio.sleep(0)
        fetching.cancel()
        await asyncio.wait([fetching])
        image = store.local(release)
        if image is not None:
            assert image.root_disk.read_bytes() == images["a"].files[Kind.ROOT_DISK].read_bytes()
    image = await store.fetch(release)
    for kind, path in zip(Kind, (image.kernel, image.initrd, image.root_disk), strict=True):
        assert path.read_bytes() == images["a"].files[kind].read_bytes()


async def test_nothing_blocking_is_done_on_the_event_loop(
    store: ReleaseStore, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every write to a file happens in a thread."""
    loop_thread = threading.get_ident()
    writers: set[int] = set()
    real = os.pwrite

    def noted(descriptor: int, data: bytes, offset: int) -> int:
        writers.add(threading.get_ident())
        return real(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", noted)
    await store.fetch(release)
    assert writers
    assert loop_thread not in writers


async def test_servers_that_refuse_head_are_asked_otherwise(
    store: ReleaseStore, server: HttpsFiles
) -> None:
    for kind in Kind:
        server.statuses["HEAD", f"v0.11.0.{kind}"] = 405
        server.statuses["HEAD", f"tinfoil-inference-v0.11.0.{kind}"] = 403
    disk = server.root / "images" / DISK
    away = disk.rename(server.root / "away")
    server.statuses["GET", "tinfoil-inference-v0.11.0.raw"] = 403
    with pytest.raises(ReleaseError, match=f"half-published: {DISK} found"):
        await store.resolve("hello", "v1.0.0")
    away.rename(disk)
    found = await store.resolve("hello", "v1.0.0")
    assert await store.fetch(found) == store.local(found)


@pytest.mark.parametrize("status", [401, 403, 429, 500, 503])
async def test_a_server_that_fails_is_no_missing_release(
    store: ReleaseStore, server: HttpsFiles, status: int
) -> None:
    server.statuses["GET", "tinfoil-deployment.json"] = status
    with pytest.raises(ReleaseSourceError, match=f"answered {status}") as refused:
        await store.resolve("hello", "v1.0.0")
    assert refused.value.code == "release_source_unavailable"


async def test_redirects_are_followed_to_https_only_and_not_for_ever(
    store: ReleaseStore, server: HttpsFiles
) -> None:
    manifest = "tinfoil-deployment.json"
    (server.root / "moved").write_bytes((server.root / "hello/v1.0.0" / manifest).read_bytes())
    server.redirects[manifest] = "/moved"
    assert (await store.resolve("hello", "v1.0.0")).tag == "v1.0.0"
    for location, told in (
        (server.url.replace("https", "http") + "/moved", "something else than https"),
        ("file:///etc/passwd", "something else than https"),
        (f"{server.url}/x/{manifest}?token=hunter2", "more than 5 times"),
        ("https://[", "no URL"),
        ("https://169.254.169.254/latest/meta-data", "to this host itself, or to its link"),
        ("https://[fe80::1]/x", "to this host itself, or to its link"),
        ("", "more than 5 times"),
    ):
        server.redirects[manifest] = location
        with pytest.raises(ReleaseSourceError, match=told) as refused:
            await store.resolve("hello", "v1.0.0")
        assert "hunter2" not in str(refused.value)


async def test_what_comes_encoded_is_refused(store: ReleaseStore, server: HttpsFiles) -> None:
    server.headers["Content-Encoding"] = "gzip"
    with pytest.raises(ReleaseSourceError, match="came encoded"):
        await store.resolve("hello", "v1.0.0")


async def test_a_certificate_that_is_not_trusted_is_an_error(
    server: HttpsFiles, executor: ThreadPoolExecutor, make_store: MakeStore
) -> None:
    source = HttpsSource(server.url, executor)
    with pytest.raises(ReleaseSourceError, match="cannot be read"):
        await make_store(source).resolve("hello", "v1.0.0")
    await source.close()
    assert server.seen == []


async def test_a_server_that_is_not_there_is_an_error(
    executor: ThreadPoolExecutor, make_store: MakeStore, server: HttpsFiles
) -> None:
    port = int(server.url.rpartition(":")[2])
    source = HttpsSource(f"https://127.0.0.2:{port}", executor)
    with pytest.raises(ReleaseSourceError, match="cannot be read"):
        await make_store(source).resolve("hello", "v1.0.0")
    await source.close()


async def test_a_path_under_the_url_is_kept(
    server: HttpsFiles, executor: ThreadPoolExecutor, make_store: MakeStore, images: Images
) -> None:
    publish(server.root / "mirror" / "releases", images["a"], repo="own/other")
    source = HttpsSource(f"{server.url}/mirror/releases/", executor, server.trust)
    store = make_store(source)
    found = await store.resolve("own/other", "v1.0.0")
    await store.fetch(found)
    await source.close()
    assert server.seen[0].path == "/mirror/releases/own/other/v1.0.0/tinfoil-deployment.json"
