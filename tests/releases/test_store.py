"""Releases over both kinds of source: resolved, refused, fetched, kept, recognised again."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest

from agent.config import ReleasesConfig, SignatureConfig
from agent.model.release import LocalImage
from agent.releases import store as store_module
from agent.releases.build import Image
from agent.releases.naming import Kind
from agent.releases.port import ReleaseError, ReleaseNotFoundError, ReleaseSourceError
from agent.releases.signature import SignatureRule
from agent.releases.source import DirectorySource, Source, open_source
from agent.releases.store import ReleaseStore, open_releases
from tests.fakes.https_files import serve_https
from tests.fakes.release_parts import CONFIG, publish

MakeStore = Callable[..., ReleaseStore]
Images = dict[str, Image]

GONE = "/no/such/source"


@dataclass
class Published:
    """A source, and the directory behind it."""

    root: Path
    source: Source

    def artifact(self, version: str, kind: Kind) -> Path:
        return self.root / "images" / f"{version}.{kind}"


@pytest.fixture(params=["directory", "file", "https"])
async def published(
    request: pytest.FixtureRequest, tmp_path: Path, executor: ThreadPoolExecutor
) -> AsyncIterator[Published]:
    root = tmp_path / "source"
    root.mkdir()
    if request.param == "https":
        async with serve_https(root, tmp_path) as server:
            source = open_source(server.url, executor, server.trust)
            yield Published(root, source)
            await source.close()
        return
    text = str(root) if request.param == "directory" else root.as_uri()
    yield Published(root, open_source(text, executor))


def own(path: Path) -> Path:
    """Give a hard-linked artifact its own bytes, so that a test may spoil it."""
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data)
    return path


def cached(tmp_path: Path) -> set[str]:
    directory = tmp_path / "cache" / "artifacts"
    return {p.name for p in directory.iterdir()} if directory.is_dir() else set()


async def test_a_release_is_resolved_fetched_and_known(
    published: Published, images: Images, make_store: MakeStore
) -> None:
    built = publish(published.root, images["a"])
    store = make_store(published.source)
    release = await store.resolve("hello", "v1.0.0")
    assert release == built.release
    assert store.local(release) is None
    image = await store.fetch(release)
    assert store.local(release) == image
    files = {Kind.KERNEL: image.kernel, Kind.INITRD: image.initrd, Kind.ROOT_DISK: image.root_disk}
    for kind, path in files.items():
        assert path.read_bytes() == images["a"].files[kind].read_bytes()
        assert path.stat().st_mode & 0o777 == 0o444
        assert path.stat().st_nlink == 1  # a copy: nobody else can rewrite it
    assert await store.fetch(release) == image


async def test_a_known_digest_needs_no_source_also_after_a_restart(
    published: Published, images: Images, make_store: MakeStore
) -> None:
    publish(published.root, images["a"])
    first = make_store(published.source)
    release = await first.resolve("hello", "v1.0.0")
    image = await first.fetch(release)
    for source in (None, DirectorySource(Path(GONE), ThreadPoolExecutor(1))):
        later = make_store(source)
        again = await later.resolve("hello", "v1.0.0", release.digest)
        assert again == release
        assert later.local(again) == image
        assert await later.fetch(again) == image


async def test_a_tag_that_is_not_there_is_not_found(
    published: Published, images: Images, make_store: MakeStore
) -> None:
    publish(published.root, images["a"])
    (published.root / "hello" / "v2.0.0").mkdir()
    store = make_store(published.source)
    for repo, tag in (("hello", "v9"), ("other", "v1.0.0"), ("own/x", "v1"), ("hello", "v2.0.0")):
        with pytest.raises(ReleaseNotFoundError, match=f"no release {repo} {tag}"):
            await store.resolve(repo, tag)


@pytest.mark.parametrize("kind", list(Kind))
async def test_a_tag_without_one_of_its_artifacts_is_half_published(
    published: Published, images: Images, make_store: MakeStore, kind: Kind
) -> None:
    publish(published.root, images["a"])
    published.artifact("v0.11.0", kind).unlink()
    store = make_store(published.source)
    with pytest.raises(ReleaseError, match=f"half-published: v0.11.0.{kind} found") as refused:
        await store.resolve("hello", "v1.0.0")
    assert refused.value.code == "release_invalid"


@pytest.mark.parametrize("place", ["hello/v1.0.0", "hello/images", "images"])
@pytest.mark.parametrize("prefix", ["v", "tinfoil-inference-v"])
async def test_artifacts_may_lie_beside_the_manifest_or_under_images(
    published: Published, images: Images, make_store: MakeStore, place: str, prefix: str
) -> None:
    publish(published.root, images["a"])
    (published.root / place).mkdir(exist_ok=True)
    for kind in Kind:
        source = published.artifact("v0.11.0", kind)
        source.rename(published.root / place / f"{prefix}0.11.0.{kind}")
    store = make_store(published.source)
    release = await store.resolve("hello", "v1.0.0")
    assert isinstance(await store.fetch(release), LocalImage)


async def test_a_manifest_that_is_wrong_is_refused_with_the_field(
    published: Published, images: Images, make_store: MakeStore
) -> None:
    built = publish(published.root, images["a"])
    text = built.manifest.read_text().replace('"cpus": 2', '"cpus": 3')
    built.manifest.write_text(text)
    with pytest.raises(ReleaseError, match=r"vm_shape\.cpus: is 3, but"):
        await make_store(published.source).resolve("hello", "v1.0.0")


async def test_a_manifest_of_ten_megabytes_is_refused(
    published: Published, images: Images, make_store: MakeStore
) -> None:
    built = publish(published.root, images["a"])
    built.manifest.write_bytes(b'{"config": "' + b"a" * 10_000_000 + b'"}')
    with pytest.raises(ReleaseError, match="longer than"):
        await make_store(published.source).resolve("hello", "v1.0.0")


async def test_a_tag_that_changed_is_refused_where_the_old_bytes_are_wanted(
    published: Published, images: Images, make_store: MakeStore, tmp_path: Path
) -> None:
    built = publish(published.root, images["a"])
    old = built.release.digest
    built.manifest.unlink()
    publish(published.root, images["a"], config=CONFIG + b"# other\n")
    store = make_store(published.source)
    with pytest.raises(ReleaseError, match="another manifest"):
        await store.resolve("hello", "v1.0.0", old)
    assert (await store.resolve("hello", "v1.0.0")).digest != old


@pytest.mark.parametrize("kind", list(Kind))
async def test_an_artifact_with_another_content_is_refused_and_leaves_nothing(
    published: Published, images: Images, make_store: MakeStore, tmp_path: Path, kind: Kind
) -> None:
    publish(published.root, images["a"])
    path = own(published.artifact("v0.11.0", kind))
    data = bytearray(path.read_bytes())
    data[(1 << 20) + 5] ^= 1
    path.write_bytes(data)
    store = make_store(published.source)
    release = await store.resolve("hello", "v1.0.0")
    told = "verity root|not what was hashed" if kind is Kind.ROOT_DISK else "its SHA-256 is"
    with pytest.raises(ReleaseError, match=rf"v0\.11\.0\.{kind}: .*({told})"):
        await store.fetch(release)
    assert store.local(release) is None
    key = _key(images["a"], kind)
    assert key not in cached(tmp_path)
    assert not list((tmp_path / "cache" / "partial").glob(f"{key}*"))
    data[(1 << 20) + 5] ^= 1
    path.write_bytes(data)
    assert await store.fetch(release) == store.local(release)


async def test_an_artifact_that_is_cut_short_is_refused(
    published: Published, images: Images, make_store: MakeStore
) -> None:
    publish(published.root, images["a"])
    for kind in Kind:
        path = own(published.artifact("v0.11.0", kind))
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        store = make_store(published.source)
        release = await store.resolve("hello", "v1.0.0")
        with pytest.raises(ReleaseError, match=rf"v0\.11\.0\.{kind}: "):
            await store.fetch(release)
        path.write_bytes(whole)


async def test_an_artifact_that_vanished_after_resolve_is_told(
    published: Published, images: Images, make_store: MakeStore
) -> None:
    publish(published.root, images["a"])
    store = make_store(published.source)
    release = await store.resolve("hello", "v1.0.0")
    published.artifact("v0.11.0", Kind.INITRD).unlink()
    with pytest.raises(ReleaseError, match=r"v0\.11\.0\.initrd is no longer at the source"):
        await store.fetch(release)


def _key(image: Image, kind: Kind) -> str:
    sha256 = image.sha256[kind]
    return f"sha256-{sha256}" if sha256 else f"verity-{image.root_hash}"


@pytest.mark.parametrize("kind", list(Kind))
async def test_a_cached_file_that_was_changed_does_not_count_and_is_fetched_again(
    images: Images, make_store: MakeStore, tmp_path: Path, executor: ThreadPoolExecutor, kind: Kind
) -> None:
    root = tmp_path / "source"
    publish(root, images["a"])
    store = make_store(DirectorySource(root, executor))
    release = await store.resolve("hello", "v1.0.0")
    await store.fetch(release)
    path = tmp_path / "cache" / "artifacts" / _key(images["a"], kind)
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[1 << 20] ^= 1
    path.write_bytes(data)
    assert store.local(release) is None
    assert make_store(None).local(release) is None
    await store.fetch(release)
    assert path.read_bytes() == images["a"].files[kind].read_bytes()
    assert store.local(release) is not None


@pytest.mark.parametrize("kind", list(Kind))
async def test_a_cached_file_that_was_touched_or_lost_its_stamp_is_verified_in_place(
    images: Images, make_store: MakeStore, tmp_path: Path, executor: ThreadPoolExecutor, kind: Kind
) -> None:
    root = tmp_path / "source"
    publish(root, images["a"])
    store = make_store(DirectorySource(root, executor))
    release = await store.resolve("hello", "v1.0.0")
    await store.fetch(release)
    path = tmp_path / "cache" / "artifacts" / _key(images["a"], kind)
    stamp = path.with_name(path.name + ".verified")
    inode = path.stat().st_ino
    for spoil in (lambda: os.utime(path), stamp.unlink, lambda: stamp.write_text("{}")):
        spoil()
        without_source = make_store(None)
        assert without_source.local(release) is None
        await without_source.fetch(release)
        assert without_source.local(release) is not None
    assert path.stat().st_ino == inode


async def test_a_damaged_kept_manifest_does_not_count(
    images: Images, make_store: MakeStore, tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    root = tmp_path / "source"
    publish(root, images["a"])
    source = DirectorySource(root, executor)
    release = await make_store(source).resolve("hello", "v1.0.0")
    kept = tmp_path / "cache" / "manifests" / f"{release.digest}.json"
    kept.write_bytes(kept.read_bytes().replace(b"hello", b"olleh") + b" ")
    with pytest.raises(ReleaseSourceError):
        await make_store(None).resolve("hello", "v1.0.0", release.digest)
    assert await make_store(source).resolve("hello", "v1.0.0", release.digest) == release
    assert hashlib.sha256(kept.read_bytes()).hexdigest() == release.digest


async def test_model_packs_are_found_by_their_root_hash(
    images: Images, make_store: MakeStore, tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    model = "7a" * 32
    line = f"models: [{{mpk: {model}_4096_27fb23ac-db9b-5e25-991a-90fdf2c9b3a7}}]\n"
    publish(tmp_path / "source", images["a"], config=CONFIG + line.encode())
    source = DirectorySource(tmp_path / "source", executor)
    release = await make_store(source).resolve("hello", "v1.0.0")
    with pytest.raises(ReleaseError, match=r"releases\.models_dir is not set"):
        await make_store(source).fetch(release)
    models = tmp_path / "models"
    models.mkdir()
    store = make_store(source, models_dir=models)
    with pytest.raises(ReleaseError, match=f"model pack {model} is not on this host"):
        await store.fetch(release)
    (models / model).write_bytes(b"pack")
    image = await store.fetch(release)
    assert image.models == (models / model,)
    assert store.local(release) == image
    (models / model).unlink()
    assert store.local(release) is None


async def test_firmware_is_found_by_its_content(
    images: Images, make_store: MakeStore, tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    built = publish(tmp_path / "source", images["a"])
    digest = hashlib.sha256(b"OVMF").hexdigest()
    firmware = (
        f'"firmware": {{"sev_snp": {{"type": "ovmf", "version": "v1", "sha256": "{digest}"}}}},'
    )
    built.manifest.write_text(built.manifest.read_text().replace("{", "{" + firmware, 1))
    shelf = tmp_path / "firmware"
    store = make_store(DirectorySource(tmp_path / "source", executor), firmware_dir=shelf)
    release = await store.resolve("hello", "v1.0.0")
    assert (await store.fetch(release)).firmware is None
    shelf.mkdir()
    (shelf / "other.fd").write_bytes(b"other")
    (shelf / "any-name").write_bytes(b"OVMF")
    image = await store.fetch(release)
    assert image.firmware == shelf / "any-name"
    assert store.local(release) == image
    (shelf / "any-name").write_bytes(b"changed")
    assert (await store.fetch(release)).firmware is None
    late = make_store(None, firmware_dir=shelf)
    assert late.local(release) is None  # not looked for yet: not known


async def test_a_tag_without_a_signature_is_refused_where_one_is_required(
    images: Images, make_store: MakeStore, tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    publish(tmp_path / "source", images["a"])
    source = DirectorySource(tmp_path / "source", executor)
    rule = SignatureRule(SignatureConfig(trusted_root=tmp_path / "root.json"))
    store = make_store(source, signatures=rule)
    with pytest.raises(ReleaseError, match="is not signed") as refused:
        await store.resolve("hello", "v1.0.0")
    assert refused.value.code == "signature_required"
    with pytest.raises(ReleaseNotFoundError):
        await store.resolve("hello", "v9")


async def test_what_was_admitted_before_signatures_were_required_still_resolves(
    images: Images, make_store: MakeStore, tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    """A running enclave is not taken down by a change of what is admitted."""
    publish(tmp_path / "source", images["a"])
    source = DirectorySource(tmp_path / "source", executor)
    release = await make_store(source).resolve("hello", "v1.0.0")
    store = make_store(source, signatures=SignatureRule(SignatureConfig()))
    assert await store.resolve("hello", "v1.0.0", release.digest) == release


async def test_without_a_source_nothing_resolves(make_store: MakeStore) -> None:
    with pytest.raises(ReleaseSourceError, match=r"releases\.source"):
        await make_store(None).resolve("hello", "v1.0.0")


async def test_a_source_directory_that_is_gone_is_no_missing_tag(
    make_store: MakeStore, executor: ThreadPoolExecutor
) -> None:
    store = make_store(DirectorySource(Path(GONE), executor))
    with pytest.raises(ReleaseSourceError, match="is not a directory"):
        await store.resolve("hello", "v1.0.0")


async def test_what_is_no_file_at_the_source_is_refused_without_waiting(
    images: Images, make_store: MakeStore, tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    built = publish(tmp_path / "source", images["a"])
    built.manifest.unlink()
    os.mkfifo(built.manifest)
    store = make_store(DirectorySource(tmp_path / "source", executor))
    with pytest.raises(ReleaseSourceError, match="is not a file"):
        await store.resolve("hello", "v1.0.0")


@pytest.mark.parametrize("text", ["http://example.invalid/x", "ftp://x/y", "file://other/x",
                                  "s3://bucket"])  # fmt: skip
def test_only_directories_and_https_are_sources(text: str, executor: ThreadPoolExecutor) -> None:
    with pytest.raises(ReleaseSourceError, match="a directory, an https URL, or github"):
        open_source(text, executor)


@pytest.mark.parametrize("text", ["https://u:p@example.invalid", "https://example.invalid/?a=b",
                                  "https://example.invalid/#x", "https://"])  # fmt: skip
def test_https_sources_carry_no_secret_and_no_query(
    text: str, executor: ThreadPoolExecutor
) -> None:
    with pytest.raises(ReleaseSourceError, match="without user") as refused:
        open_source(text, executor)
    assert "p@" not in str(refused.value)


async def test_the_configuration_opens_a_store(images: Images, tmp_path: Path) -> None:
    publish(tmp_path / "my releases", images["a"])
    config = ReleasesConfig(source=(tmp_path / "my releases").as_uri())
    store = open_releases(config, state_dir=tmp_path / "state")
    release = await store.resolve("hello", "v1.0.0")
    image = await store.fetch(release)
    assert image.kernel.is_relative_to(tmp_path / "state" / "cache")
    await store.close()


async def test_two_fetches_at_once_copy_each_artifact_once(
    images: Images, make_store: MakeStore, tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    publish(tmp_path / "source", images["a"])
    publish(tmp_path / "source", images["a"], tag="v1.1.0", config=CONFIG + b"# other\n")
    store = make_store(DirectorySource(tmp_path / "source", executor))
    one = await store.resolve("hello", "v1.0.0")
    two = await store.resolve("hello", "v1.1.0")
    first, second, third = await asyncio.gather(
        store.fetch(one), store.fetch(two), store.fetch(one)
    )
    assert first == second == third
    assert len(cached(tmp_path)) == 6  # three artifacts, a stamp each


class _Dripping(DirectorySource):
    """A source that goes on answering and never has answered."""

    async def _drip(self, *_: object) -> NoReturn:
        while True:
            await asyncio.sleep(0.01)

    manifest = signature = _drip


async def test_a_source_that_does_not_come_to_an_end_is_given_up(
    tmp_path: Path,
    executor: ThreadPoolExecutor,
    make_store: MakeStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(store_module, "PATIENCE_S", 0.2)
    signed = SignatureRule(SignatureConfig(issuer="https://issuer.invalid", repository="a/b"))
    store = make_store(_Dripping(tmp_path, executor), signatures=signed)
    for asked in (
        store.resolve("hello", "v1.0.0"),
        store.resolve("hello", "v1.0.0", "0" * 64),
        store.require_signed("hello", "v1.0.0", "0" * 64),
    ):
        with pytest.raises(
            ReleaseSourceError, match=r"hello v1\.0\.0 was not resolved within 0\.2 s"
        ):
            await asked
