"""Making releases: what is made is accepted, and what exists is never changed."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from agent.cli.release import release as command
from agent.model.measurement import MeasuredLaunch
from agent.releases.build import Image, TagTakenError, read_image
from agent.releases.launch_digest import snp_launch_digest
from agent.releases.naming import Kind
from agent.releases.port import ReleaseError
from agent.releases.source import DirectorySource
from agent.releases.store import ReleaseStore
from tests.fakes.release_parts import CONFIG, make_image, publish
from tests.fakes.tiny_firmware import tiny_firmware

GUEST = Path(__file__).resolve().parents[2] / ".cache" / "guest" / "image.json"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A directory with an image that the test may spoil."""
    make_image(tmp_path / "image")
    return tmp_path / "image"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "tinfoil-config.yml"
    path.write_bytes(CONFIG)
    return path


def build(tmp_path: Path, *more: str, tag: str = "v1.0.0", image: str | None = None) -> Result:
    arguments = ["build", "--config", str(tmp_path / "tinfoil-config.yml")]
    arguments += ["--image", image or str(tmp_path / "image"), "--out", str(tmp_path / "out")]
    arguments += ["--repo", "own/hello", "--tag", tag, *more]
    return CliRunner().invoke(command, arguments)


def manifest_of(tmp_path: Path, tag: str = "v1.0.0") -> Path:
    return tmp_path / "out" / "own" / "hello" / tag / "tinfoil-deployment.json"


async def test_what_is_made_is_a_release(
    tmp_path: Path,
    image: Path,
    config: Path,
    make_store: Callable[..., ReleaseStore],
    executor: ThreadPoolExecutor,
) -> None:
    result = build(tmp_path)
    assert result.exit_code == 0, result.output
    members = json.loads(manifest_of(tmp_path).read_bytes())
    assert base64.b64decode(members["config"]) == CONFIG
    assert members["vm_shape"] == {"cpus": 2, "memory_mb": 512, "gpus": 0, "disks": 3}
    assert "snp_measurement" not in members
    root = members["hashes"]["root"]
    assert members["cmdline"] == (
        "readonly=on pci=realloc,nocrs modprobe.blacklist=nouveau nouveau.modeset=0 "
        f"root=/dev/mapper/root roothash={root} "
        f"tinfoil-config-hash={hashlib.sha256(CONFIG).hexdigest()}"
    )
    assert sorted(path.name for path in (tmp_path / "out" / "images").iterdir()) == [
        "v0.11.0.initrd", "v0.11.0.raw", "v0.11.0.vmlinuz",
    ]  # fmt: skip
    store = make_store(DirectorySource(tmp_path / "out", executor))
    found = await store.resolve("own/hello", "v1.0.0")
    assert found.digest in result.output
    assert await store.fetch(found) == store.local(found)


def test_making_it_again_changes_nothing(tmp_path: Path, image: Path, config: Path) -> None:
    build(tmp_path)
    before = {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in (tmp_path / "out").rglob("*")}
    result = build(tmp_path)
    assert result.exit_code == 0
    assert "there already" in result.output
    assert before == {
        p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in (tmp_path / "out").rglob("*")
    }


def test_tags_of_one_image_share_its_files(tmp_path: Path, image: Path, config: Path) -> None:
    build(tmp_path)
    inode = (tmp_path / "out/images/v0.11.0.raw").stat().st_ino
    config.write_bytes(CONFIG + b"# next\n")
    assert build(tmp_path, tag="v1.1.0").exit_code == 0
    assert (tmp_path / "out/images/v0.11.0.raw").stat().st_ino == inode


def test_debug_and_measurement_are_in_the_manifest(
    tmp_path: Path, image: Path, config: Path
) -> None:
    assert build(tmp_path, "--debug", "--snp-measurement", "ab" * 48).exit_code == 0
    members = json.loads(manifest_of(tmp_path).read_bytes())
    assert members["cmdline"].endswith(" tinfoil-debug=on")
    assert members["snp_measurement"] == "ab" * 48


def test_a_tag_is_never_given_another_content(tmp_path: Path, image: Path, config: Path) -> None:
    build(tmp_path)
    before = manifest_of(tmp_path).read_bytes()
    config.write_bytes(CONFIG + b"# other\n")
    result = build(tmp_path)
    assert result.exit_code == 3
    assert "a tag never changes" in result.output
    assert manifest_of(tmp_path).read_bytes() == before


def test_an_image_version_is_never_given_another_content(
    tmp_path: Path, image: Path, config: Path
) -> None:
    build(tmp_path)
    make_image(image, seed=b"other")
    result = build(tmp_path, tag="v1.1.0")
    assert result.exit_code == 3
    assert "give the image another version" in result.output
    assert not manifest_of(tmp_path, "v1.1.0").exists()


@pytest.mark.parametrize("name", ["guest.vmlinuz", "guest.initrd", "guest.raw"])
def test_an_image_that_is_not_what_its_description_says_is_refused(
    tmp_path: Path, image: Path, config: Path, name: str
) -> None:
    data = bytearray((image / name).read_bytes())
    data[(1 << 20) + 1] ^= 1
    (image / name).write_bytes(data)
    result = build(tmp_path)
    assert result.exit_code == 2
    assert name in result.output
    assert not manifest_of(tmp_path).exists()


@pytest.mark.parametrize("name", ["guest.vmlinuz", "guest.initrd", "guest.raw", "image.json"])
def test_an_image_with_a_missing_file_makes_no_release(
    tmp_path: Path, image: Path, config: Path, name: str
) -> None:
    (image / name).unlink()
    result = build(tmp_path)
    assert result.exit_code in (1, 2)
    assert name in result.output
    assert not manifest_of(tmp_path).exists()


def test_a_wrong_config_is_told_with_its_field(tmp_path: Path, image: Path, config: Path) -> None:
    config.write_bytes(CONFIG.replace(b"cpus: 2", b"cpus: two"))
    result = build(tmp_path)
    assert result.exit_code == 2
    assert "tinfoil-config.yml: cpus: must be a whole number" in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("option", "value"),
    [("--tag", "../x"), ("--tag", "a/b"), ("--tag", ""), ("--repo", "../x"), ("--repo", "a/b/c"),
     ("--snp-measurement", "xyz")],
)  # fmt: skip
def test_wrong_names_are_refused(
    tmp_path: Path, image: Path, config: Path, option: str, value: str
) -> None:
    assert build(tmp_path, option, value).exit_code == 2
    assert not (tmp_path / "out").exists()


def test_a_config_for_an_image_without_a_layout_makes_no_release(
    tmp_path: Path, image: Path, config: Path
) -> None:
    make_image(image, "v0.10.8")
    config.write_bytes(CONFIG.replace(b"0.11.0", b"0.10.8"))
    result = build(tmp_path)
    assert result.exit_code == 2
    assert "no machine layout" in result.output


@pytest.mark.parametrize("path", ["version", "root", "kernel", "initrd", "files", "files.kernel",
                                  "files.initrd", "files.raw"])  # fmt: skip
@pytest.mark.parametrize("value", [..., 7, "../x", "", [], None])
def test_every_field_of_an_image_is_checked(
    tmp_path: Path, image: Path, path: str, value: Any
) -> None:
    members = json.loads((image / "image.json").read_bytes())
    place, _, last = path.rpartition(".")
    target = members[place] if place else members
    if value is ...:
        del target[last]
    else:
        target[last] = value
    (image / "image.json").write_text(json.dumps(members))
    with pytest.raises(ReleaseError, match=rf"image\.json: {path}: "):
        read_image(image / "image.json")


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\xff"])
def test_an_image_description_that_is_no_json_is_refused(image: Path, text: str) -> None:
    (image / "image.json").write_text(text, encoding="latin-1")
    with pytest.raises(ReleaseError, match=r"image\.json is not JSON"):
        read_image(image / "image.json")


def test_an_image_built_anew_in_place_changes_no_release(
    tmp_path: Path, image: Path, config: Path
) -> None:
    build(tmp_path)
    before = {path: path.read_bytes() for path in (tmp_path / "out" / "images").iterdir()}
    make_image(image, seed=b"other")
    assert before == {path: path.read_bytes() for path in (tmp_path / "out" / "images").iterdir()}


def test_a_failure_before_the_manifest_leaves_no_tag(
    tmp_path: Path, images: dict[str, Image]
) -> None:
    (tmp_path / "out" / "images").mkdir(parents=True)
    (tmp_path / "out" / "images" / "v0.11.0.raw").write_bytes(b"another")
    with pytest.raises(TagTakenError):
        publish(tmp_path / "out", images["a"])
    assert not (tmp_path / "out" / "hello").exists()


@pytest.mark.skipif(not GUEST.is_file(), reason="the reference guest was not built here")
async def test_the_reference_guest_makes_a_release_that_verifies(
    tmp_path: Path, make_store: Callable[..., ReleaseStore], executor: ThreadPoolExecutor
) -> None:
    guest = read_image(GUEST)
    version = guest.version.removeprefix("v").encode()
    publish(tmp_path / "out", guest, config=CONFIG.replace(b"0.11.0", version))
    store = make_store(DirectorySource(tmp_path / "out", executor))
    release = await store.resolve("hello", "v1.0.0")
    assert release.layout == "virtio-pci"
    assert await store.fetch(release) == store.local(release)


def test_a_firmware_is_named_by_its_content_and_measured_with_the_rest(
    tmp_path: Path, image: Path, config: Path
) -> None:
    firmware = tmp_path / "OVMF.fd"
    firmware.write_bytes(tiny_firmware())
    assert build(tmp_path, "--firmware", str(firmware)).exit_code == 0
    members = json.loads(manifest_of(tmp_path).read_bytes())
    digest = hashlib.sha256(firmware.read_bytes()).hexdigest()
    assert members["firmware"]["sev_snp"]["sha256"] == digest
    files = read_image(image / "image.json").files
    measured = snp_launch_digest(
        MeasuredLaunch(
            vcpus=2,
            firmware=firmware,
            kernel=files[Kind.KERNEL],
            initrd=files[Kind.INITRD],
            cmdline=members["cmdline"],
        )
    )
    assert members["snp_measurement"] == measured.hex()
    assert not list((tmp_path / "out").rglob("*.fd"))  # hosts have their own

    stated = "ab" * 48
    more = ("--firmware", str(firmware), "--snp-measurement", stated)
    assert build(tmp_path, *more, tag="v2").exit_code == 0
    assert json.loads(manifest_of(tmp_path, "v2").read_bytes())["snp_measurement"] == stated


def test_a_firmware_that_cannot_be_measured_makes_no_release(
    tmp_path: Path, image: Path, config: Path
) -> None:
    firmware = tmp_path / "OVMF.fd"
    firmware.write_bytes(tiny_firmware(kernel_hashes=False))
    result = build(tmp_path, "--firmware", str(firmware))
    assert (result.exit_code, "no SEV-SNP metadata" in result.output) == (2, True)
    assert not manifest_of(tmp_path).exists()
