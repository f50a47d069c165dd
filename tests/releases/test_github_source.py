"""Releases read where GitHub keeps them, and mirrored from there; over real TLS, in its form."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from agent.cli import cli
from agent.config_file import ConfigError, load_config
from agent.releases.build import Image
from agent.releases.naming import MANIFEST, SIGNATURE
from agent.releases.port import ReleaseError, ReleaseNotFoundError, ReleaseSourceError
from agent.releases.source import Source, open_source
from agent.releases.store import ReleaseStore
from tests.fakes.github import Github, serve_github
from tests.fakes.https_files import serve_https
from tests.fakes.release_parts import CONFIG, MIB, publish

REPO, TAG = "own/hello", "v1.0.0"
KERNEL = "v0.11.0.vmlinuz"
NAMES = ["v0.11.0.initrd", "v0.11.0.raw", KERNEL]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, images: dict[str, Image]) -> Path:
    """A directory source, of which parts are published; nobody writes to it."""
    out = tmp_path_factory.mktemp("made")
    publish(out, images["a"], REPO, TAG)
    return out


@pytest.fixture
async def github(tmp_path: Path, made: Path) -> AsyncIterator[Github]:
    """With one release, whose image lies beside its manifest."""
    root = tmp_path / "github"
    shutil.copytree(made / REPO, root / REPO)
    for file in (made / "images").iterdir():
        shutil.copy(file, root / REPO / TAG)
    async with serve_github(root, tmp_path) as serving:
        yield serving


@pytest.fixture
async def source(github: Github, executor: ThreadPoolExecutor) -> AsyncIterator[Source]:
    opened = open_source(github.source, executor, github.trust)
    yield opened
    await opened.close()


async def command(github: Github, *arguments: str) -> Result:
    """The command line, in a thread beside the server's loop."""
    trusting = ["--ca-file", str(github.certificate)]
    return await asyncio.to_thread(
        CliRunner().invoke, cli, ["release", *arguments, *trusting], catch_exceptions=False
    )


async def pull(github: Github, out: Path, *more: str) -> Result:
    arguments = ["pull", f"{REPO}@{TAG}", "--out", str(out), "--source", github.source]
    return await command(github, *arguments, *more)


def in_mirror(out: Path) -> list[str]:
    return sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())


async def test_a_host_takes_its_releases_from_there(
    github: Github, source: Source, make_store: Callable[..., ReleaseStore]
) -> None:
    store = make_store(source)
    found = await store.resolve(REPO, TAG)
    assert await store.fetch(found) == store.local(found)
    assert found.config == CONFIG
    # Each was redirected; nobody but the installation itself was asked at its own address.
    downloads = [path for which, _, path, status in github.seen if status == 302]
    assert all(path.startswith(f"/{REPO}/releases/download/{TAG}/") for path in downloads)


async def test_what_did_not_change_is_not_sent_again(github: Github, source: Source) -> None:
    first = await source.manifest(REPO, TAG)
    assert await source.manifest(REPO, TAG) == first
    assert [status for which, _, _, status in github.seen if which == "assets"] == [200, 304]
    path = github.root / REPO / TAG / MANIFEST
    path.write_bytes(first + b"\n")
    assert await source.manifest(REPO, TAG) == first + b"\n"


async def test_a_private_repository_needs_the_token_which_goes_to_github_alone(
    github: Github, source: Source, executor: ThreadPoolExecutor, tmp_path: Path
) -> None:
    github.private.add(REPO)
    with pytest.raises(ReleaseNotFoundError, match="github_token_file"):
        await source.manifest(REPO, TAG)
    token = tmp_path / "token"
    token.write_text("wrong\n")
    known = open_source(github.source, executor, github.trust, token)
    with pytest.raises(ReleaseNotFoundError):
        await known.manifest(REPO, TAG)
    token.write_text("right\n")  # replaced: no restart is needed
    assert await known.manifest(REPO, TAG)  # where the bytes lie a token would be refused
    token.write_text("two words\n")
    with pytest.raises(ReleaseSourceError, match="holds no token") as refused:
        await known.manifest(REPO, TAG)
    assert "two" not in str(refused.value)
    await known.close()


async def test_a_signature_is_beside_the_manifest_or_an_attestation_of_its_digest(
    github: Github, source: Source, make_store: Callable[..., ReleaseStore]
) -> None:
    assert await source.signature(REPO, TAG) is None
    digest = (await make_store(source).resolve(REPO, TAG)).digest
    github.bundles[digest] = {"mediaType": "x"}
    assert await source.signature(REPO, TAG) == b'{"mediaType": "x"}'
    (github.root / REPO / TAG / SIGNATURE).write_bytes(b"{}")
    assert await source.signature(REPO, TAG) == b"{}"


async def test_what_there_is_not_and_what_cannot_be_is_told(
    github: Github, source: Source
) -> None:
    with pytest.raises(ReleaseNotFoundError, match="no release own/hello v9"):
        await source.manifest(REPO, "v9")
    with pytest.raises(ReleaseError, match="OWNER/NAME"):
        await source.manifest("hello", TAG)
    assert await source.find([f"{REPO}/images/{KERNEL}", f"images/{KERNEL}"]) is None
    github.busy = True
    with pytest.raises(ReleaseSourceError, match="429; it may be asked again in 60 s"):
        await source.manifest(REPO, TAG)


async def test_a_mirror_is_a_source_and_pulling_again_moves_no_byte(
    github: Github, tmp_path: Path, made: Path, make_store: Callable[..., ReleaseStore],
    executor: ThreadPoolExecutor,
) -> None:  # fmt: skip
    out = tmp_path / "mirror"
    result = await pull(github, out)
    assert result.exit_code == 0, result.output
    assert f"{REPO} {TAG}: pulled" in result.output
    assert [name for name in in_mirror(out) if not name.endswith(".etag")] == [
        *(f"images/{name}" for name in NAMES), f"{REPO}/{TAG}/{MANIFEST}",
    ]  # fmt: skip
    store = make_store(open_source(str(out), executor))
    found = await store.resolve(REPO, TAG)
    assert await store.fetch(found) == store.local(found)

    github.seen.clear()
    result = await pull(github, out)
    assert (result.exit_code, "here already" in result.output) == (0, True)
    sent = [path for which, _, path, status in github.seen if which == "assets" and status != 304]
    assert [path for path in sent if not path.endswith(SIGNATURE)] == []


async def test_a_tag_that_moved_leaves_the_mirror_as_it_is(github: Github, tmp_path: Path) -> None:
    out = tmp_path / "mirror"
    await pull(github, out)
    before = (out / REPO / TAG / MANIFEST).read_bytes()
    path = github.root / REPO / TAG / MANIFEST
    path.write_bytes(path.read_bytes() + b"\n")
    result = await pull(github, out)
    assert (result.exit_code, "a tag never changes" in result.output) == (3, True)
    assert (out / REPO / TAG / MANIFEST).read_bytes() == before


async def test_images_come_from_where_they_are_named_and_go_on_where_they_broke_off(
    github: Github, tmp_path: Path, made: Path
) -> None:
    for name in NAMES:
        (github.root / REPO / TAG / name).unlink()
    out = tmp_path / "mirror"
    result = await pull(github, out)
    assert result.exit_code == 2
    assert f"{KERNEL} is found neither" in result.output
    assert "--image-source" in result.output
    async with serve_https(made, tmp_path, certificate=github.certificate) as images:
        images.cuts[KERNEL] = [MIB, 0]
        result = await pull(github, out, "--image-source", images.url)
        assert result.exit_code == 1
        assert not any(name.endswith(MANIFEST) for name in in_mirror(out))
        images.seen.clear()
        result = await pull(github, out, "--image-source", images.url)
        assert result.exit_code == 0, result.output
        assert images.gets(KERNEL) == [f"bytes={MIB}-"]
    assert [name for name in in_mirror(out) if name.startswith(".pulled")] == []


async def test_what_is_not_what_the_manifest_says_gets_no_name(
    github: Github, tmp_path: Path
) -> None:
    path = github.root / REPO / TAG / KERNEL
    path.write_bytes(bytes(100))
    out = tmp_path / "mirror"
    result = await pull(github, out)
    assert (result.exit_code, KERNEL in result.output) == (2, True)
    assert not (out / "images" / KERNEL).exists()
    assert not (out / REPO).exists()


async def test_list_and_show_tell_what_there_is(github: Github, made: Path) -> None:
    result = await command(github, "list", REPO, "--source", github.source)
    assert result.output.split() == ["REPO", "TAG", REPO, TAG]
    result = await command(github, "list", "--source", github.source)
    assert (result.exit_code, "name the repository" in result.output) == (2, True)
    result = await command(github, "list", "--source", str(made))
    assert result.output.split() == ["REPO", "TAG", REPO, TAG]
    for source in (github.source, str(made)):
        result = await command(github, "show", f"{REPO}@{TAG}", "--source", source)
        assert result.exit_code == 0
        for words in ("tinfoilsh/cvmimage 0.11.0", "2 vCPUs, 512 MiB", "web  example.invalid/web",
                      "nothing of it runs", "REGION", "API_KEY", "no launch digest"):  # fmt: skip
            assert words in result.output
    result = await command(github, "show", f"{REPO}@v9", "--source", str(made))
    assert result.exit_code == 4


@pytest.mark.parametrize("text", ["github", "github:ghe.example.org", "github:10.0.0.1:8443"])
def test_a_configuration_may_name_it(tmp_path: Path, text: str) -> None:
    path = tmp_path / "agent.yaml"
    path.write_text(f"releases: {{source: '{text}', github_token_file: token}}\n")
    releases = load_config(path, {}).releases
    assert (releases.source, releases.github_token_file) == (text, tmp_path / "token")


@pytest.mark.parametrize("text", ["github:", "github:a/b", "github:user@host", "github:h?q"])
def test_what_names_no_host_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "agent.yaml"
    path.write_text(f"releases: {{source: '{text}'}}\n")
    with pytest.raises(ConfigError, match="github:HOST"):
        load_config(path, {})
