"""`release build --images`: what is laid into a root disk is what its digests say, and no more."""

from __future__ import annotations

import gzip
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from agent.cli.release import release as command
from agent.releases.disk_tools import run_tool
from agent.releases.gpt import read_partitions
from agent.releases.oci.layers import merge
from agent.releases.oci.layout import find_image, layouts_in
from agent.releases.oci.tree import Node, NodeKind
from agent.releases.port import ReleaseError
from agent.releases.root_disk import make_root_disk
from agent.releases.verity import verify_disk
from tests.fakes.oci_layouts import (
    Member,
    blob,
    descriptor,
    device,
    digest_of,
    directory,
    file,
    hard_link,
    layer,
    symlink,
    write_layout,
)
from tests.fakes.release_parts import make_image, tool

CONFIG = """\
cvm-version: 0.11.0
cpus: 1
memory: 256
shim: {upstream-port: 8080}
containers:
"""


def tree_of(tmp_path: Path, *layers: tuple[Member, ...]) -> dict[str, Node]:
    """Every path of the image that is made of these layers."""
    digest = write_layout(tmp_path / "oci", [layer(*members) for members in layers])
    image = find_image(layouts_in(tmp_path), digest)
    assert image is not None
    (tmp_path / "scratch").mkdir(exist_ok=True)
    found: dict[str, Node] = {}
    left = [("", merge(image, tmp_path / "scratch").root)]
    while left:
        path, node = left.pop()
        found[path.lstrip("/")] = node
        left += [(f"{path}/{name}", child) for name, child in node.children.items()]
    del found[""]
    return found


def test_a_whiteout_hides_what_lower_layers_have_and_nothing_of_its_own(tmp_path: Path) -> None:
    found = tree_of(
        tmp_path,
        (file("etc/old"), file("etc/kept"), file("var/a/x"), file("var/a/y")),
        (file("etc/.wh.old"), file("var/a/z"), file("var/a/.wh..wh..opq"), file(".wh.absent")),
        (file("etc/old", b"new"),),
    )
    assert sorted(found) == ["etc", "etc/kept", "etc/old", "var", "var/a", "var/a/z"]


def test_a_later_layer_replaces_a_file_and_only_dresses_a_directory_anew(tmp_path: Path) -> None:
    found = tree_of(
        tmp_path,
        (directory("srv", uid=1), file("srv/a"), file("turns"), directory("was"), file("was/x")),
        (directory("srv", 0o700, uid=7), directory("turns"), file("was")),
    )
    assert (found["srv"].mode, found["srv"].uid) == (0o700, 7)
    assert found["turns"].kind is NodeKind.DIRECTORY
    assert (found["was"].kind, "was/x" in found) == (NodeKind.FILE, False)


def test_a_symlink_on_the_way_is_followed_within_the_image(tmp_path: Path) -> None:
    found = tree_of(
        tmp_path,
        (directory("usr/lib"), symlink("lib", "usr/lib"), symlink("out", "/../../../etc")),
        (file("lib/new"), file("out/passwd")),
    )
    assert {"usr/lib/new", "etc/passwd"} <= set(found)
    assert found["lib"].kind is NodeKind.SYMLINK


@pytest.mark.parametrize(
    ("members", "complaint"),
    [
        ((file("../escaped"),), "leads out"),
        ((file("a/../../escaped"),), "leads out"),
        ((symlink("a", "b"), symlink("b", "a"), file("a/x")), "too many symlinks"),
        ((hard_link("a", "nothing"),), "hard link"),
        ((hard_link("a", "../../etc/shadow"),), "leads out"),
        ((file("x/" * 3000 + "y"),), "too long"),
    ],
)
def test_a_layer_that_leads_elsewhere_is_refused(
    tmp_path: Path, members: tuple[Member, ...], complaint: str
) -> None:
    with pytest.raises(ReleaseError, match=complaint):
        tree_of(tmp_path, members)


def test_devices_are_left_out_and_hard_links_stay_one_file(tmp_path: Path) -> None:
    found = tree_of(tmp_path, (device("dev/null"), file("a", b"x"), hard_link("b", "a")))
    assert sorted(found) == ["a", "b"]
    assert found["a"] is found["b"]


def spoil_blob(place: Path, digest: str) -> None:
    blob(place, digest).write_bytes(blob(place, digest).read_bytes() + b" ")


def of_manifest(place: Path, digest: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(blob(place, digest).read_bytes())
    return read


@pytest.mark.parametrize(
    "spoiled",
    [
        spoil_blob,
        lambda place, digest: spoil_blob(place, of_manifest(place, digest)["config"]["digest"]),
        lambda place, digest: spoil_blob(place, of_manifest(place, digest)["layers"][0]["digest"]),
        lambda place, digest: blob(
            place, of_manifest(place, digest)["layers"][0]["digest"]
        ).unlink(),
    ],
    ids=["manifest", "config", "layer", "layer that is not there"],
)
def test_every_blob_is_compared_with_its_digest(
    tmp_path: Path, spoiled: Callable[[Path, str], None]
) -> None:
    place = tmp_path / "oci"
    digest = write_layout(place, [layer(file("a"))])
    spoiled(place, digest)
    with pytest.raises(ReleaseError):
        read_all(place, digest, tmp_path)


def read_all(place: Path, digest: str, scratch: Path) -> None:
    image = find_image(layouts_in(place), digest)
    assert image is not None
    merge(image, scratch)


def test_a_layer_that_unpacks_to_something_else_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "oci"
    other = gzip.compress(layer(file("other")))
    told = descriptor(_made(place), other, "image.layer.v1.tar+gzip")
    digest = write_layout(place, [layer(file("a"))], spoil={"layers": [told]})
    image = find_image(layouts_in(place), digest)
    assert image is not None
    with pytest.raises(ReleaseError, match="does not unpack to"):
        merge(image, tmp_path)


def _made(place: Path) -> Path:
    write_layout(place, [])
    return place


def test_of_an_index_the_image_for_the_guest_is_taken(tmp_path: Path) -> None:
    place = tmp_path / "oci"
    arm = write_layout(place, [layer(file("arm"))], platform=("linux", "arm64"))
    amd = write_layout(place, [layer(file("amd"))])
    entries = [
        {"digest": digest, "size": 1, "platform": {"os": "linux", "architecture": name}}
        for name, digest in (("arm64", arm), ("amd64", amd))
    ]
    index = descriptor(place, json.dumps({"manifests": entries}).encode(), "image.index.v1+json")
    image = find_image(layouts_in(tmp_path), index["digest"])
    assert image is not None
    assert image.digest == index["digest"]
    assert "amd" in merge(image, tmp_path).root.children
    with pytest.raises(ReleaseError, match="amd64"):
        find_image(layouts_in(tmp_path), arm)


def test_a_zstd_layer_is_unpacked(tmp_path: Path) -> None:
    place = tmp_path / "oci"
    plain = layer(file("a", b"x" * 10_000))
    packed = subprocess.run(
        [tool("zstd"), "-qc"], input=plain, capture_output=True, check=True
    ).stdout
    told = descriptor(_made(place), packed, "image.layer.v1.tar+zstd")
    digest = write_layout(place, [plain], spoil={"layers": [told]})
    image = find_image(layouts_in(place), digest)
    assert image is not None
    assert list(merge(image, tmp_path).root.children) == ["a"]


# --- the root disk ------------------------------------------------------------------------------


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image whose root disk is a squashfs, as the reference guest's is."""
    place = tmp_path / "image"
    make_image(place)
    base = tmp_path / "base"
    base.mkdir()
    (base / "guest").write_bytes(b"\x7fELF")
    (base / "guest").chmod(0o755)
    (base / "image-version").write_text("v0.11.0\n")
    run_tool("mksquashfs", str(base), str(tmp_path / "data"), "-quiet", "-no-progress")
    known = json.loads((place / "image.json").read_text())
    known["root"] = make_root_disk(tmp_path / "data", place / known["files"]["raw"])
    (place / "image.json").write_text(json.dumps(known))
    return place


def build(tmp_path: Path, image: Path, rows: str, out: str = "out") -> Result:
    config = tmp_path / "tinfoil-config.yml"
    config.write_text(CONFIG + rows)
    arguments = ["build", "--config", str(config), "--image", str(image), "--repo", "own/hello"]
    arguments += ["--tag", "v1", "--out", str(tmp_path / out), "--images", str(tmp_path / "oci")]
    return CliRunner().invoke(command, arguments)


def listing(raw: Path, scratch: Path) -> list[str]:
    """The files of a root disk, as unsquashfs lists them."""
    with raw.open("rb") as disk:
        part = read_partitions(disk, raw.stat().st_size)[1]
        disk.seek(part.offset)
        (scratch / "read").write_bytes(disk.read(part.size))
    return run_tool("unsquashfs", "-lln", str(scratch / "read")).splitlines()


def test_the_images_of_a_config_lie_in_a_root_disk_of_its_own(tmp_path: Path, image: Path) -> None:
    app = file("bin/app", b"app", 0o755, uid=5, gid=6, mtime=86400)
    layers = [layer(app, hard_link("bin/b", "bin/app"))]
    digest = write_layout(tmp_path / "oci" / "one", layers, config={"Cmd": ["/bin/app"]})
    rows = f"  - {{name: web, image: 'ghcr.io/own/web:1@{digest}'}}\n"
    rows += f"  - {{name: again, image: 'docker.io/web@{digest}'}}\n"
    rows += f"  - {{name: acted, image: 'registry.example/x@sha256:{'0' * 64}'}}\n"
    result = build(tmp_path, image, rows)
    assert result.exit_code == 0, result.output
    manifest = json.loads((tmp_path / "out/own/hello/v1/tinfoil-deployment.json").read_text())
    hashes = manifest["hashes"]
    assert hashes["version"] == f"v0.11.0-{hashes['root'][:12]}"
    raw = tmp_path / "out/images" / f"{hashes['version']}.raw"
    verify_disk(raw, hashes["root"])
    lines = listing(raw, tmp_path)
    place = f"squashfs-root/images/{digest.removeprefix('sha256:')}"
    assert sum(line.endswith("/rootfs") for line in lines) == 1
    (shown,) = [line for line in lines if line.endswith(f"{place}/rootfs/bin/app")]
    assert shown.split()[:3] == ["-rwxr-xr-x", "5/6", "3"]
    assert "1970-01-02" in shown
    assert any(line.endswith(f"{place}/config.json") for line in lines)
    assert any(line.startswith("-rwxr-xr-x 0/0") and line.endswith("/guest") for line in lines)

    # made again, elsewhere and later: the same bytes
    again = build(tmp_path, image, rows, out="second")
    assert again.exit_code == 0, again.output
    assert (tmp_path / "second/images" / raw.name).read_bytes() == raw.read_bytes()


def test_an_image_that_is_not_there_is_named_with_its_place(tmp_path: Path, image: Path) -> None:
    write_layout(tmp_path / "oci", [])
    result = build(tmp_path, image, f"  - {{name: web, image: 'ghcr.io/w@sha256:{'1' * 64}'}}\n")
    assert result.exit_code == 2
    assert "containers[0].image" in result.output
    assert "holds no image sha256:1111" in result.output
    assert not (tmp_path / "out").exists()


def test_an_image_without_a_digest_is_refused(tmp_path: Path, image: Path) -> None:
    write_layout(tmp_path / "oci", [])
    result = build(tmp_path, image, "  - {name: web, image: 'ghcr.io/w:latest'}\n")
    assert result.exit_code == 2
    assert "containers[0].image: must be pinned by its digest" in result.output


def test_a_directory_without_layouts_is_refused(tmp_path: Path, image: Path) -> None:
    (tmp_path / "oci").mkdir()
    result = build(tmp_path, image, f"  - {{name: web, image: 'w@sha256:{'1' * 64}'}}\n")
    assert result.exit_code == 2
    assert "holds no OCI layout" in result.output


def test_where_all_are_played_the_root_disk_is_the_guests_own(tmp_path: Path, image: Path) -> None:
    digest = write_layout(tmp_path / "oci", [])
    result = build(tmp_path, image, f"  - {{name: web, image: 'a.invalid/w@{digest}'}}\n")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out/images/v0.11.0.raw").exists()


def test_another_root_disk_than_the_reference_guests_runs_no_images(tmp_path: Path) -> None:
    make_image(tmp_path / "image")  # its disk holds no file system
    digest = write_layout(tmp_path / "oci", [layer(file("a"))])
    result = build(tmp_path, tmp_path / "image", f"  - {{name: w, image: 'ghcr.io/w@{digest}'}}\n")
    assert result.exit_code == 1
    assert "unsquashfs" in result.output


def test_digests_are_of_the_bytes() -> None:
    assert digest_of(b"") == (
        "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    )
