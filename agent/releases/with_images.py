"""An image of the reference guest with a workload's own container images on its root disk.

The root disk is made anew: what the guest's has, and every image unpacked under
`/images/<hex of its digest>/`: `rootfs`, and `config.json`, the image's configuration. No layer is
unpacked to a file system on the way: none can write beside its image, and no privilege is needed.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO

from agent.errors import AgentError
from agent.releases.build import Image
from agent.releases.disk_tools import DiskToolError, feed_tool, run_tool
from agent.releases.gpt import GptError, read_partitions
from agent.releases.naming import Kind as Artifact
from agent.releases.oci.layers import merge
from agent.releases.oci.layout import OciImage, find_image, layouts_in
from agent.releases.oci.references import references
from agent.releases.oci.tar_stream import TarWriter
from agent.releases.oci.tree import Node, NodeKind
from agent.releases.port import ReleaseError
from agent.releases.root_disk import SQUASHFS_OPTIONS, forget_root_time, make_root_disk

_DIRECTORY = "images"
_NAMED = 12  # digits of the root hash in the image's version
_MIB = 1 << 20


class ImageToolError(AgentError):
    """A program that makes the root disk is missing or failed."""

    @property
    def code(self) -> str:
        return "image_tool_failed"


@contextmanager
def image_with(image: Image, config: bytes, directory: Path | None) -> Iterator[Image]:
    """The image with every image that runs, while the context lasts; itself if none does.

    Without a directory nothing is looked for: the guest may pull its images itself.

    Its version has the root hash behind it, for it is another image. Raises ReleaseError for an
    image that `directory` lacks, or that is not what its digests say; ImageToolError.
    """
    wanted = _wanted(config, directory) if directory else {}
    if not wanted:
        yield image
        return
    with tempfile.TemporaryDirectory(prefix="root-disk-") as scratch:
        try:
            yield _remade(image, wanted, Path(scratch))
        except DiskToolError as error:
            raise ImageToolError(str(error)) from error


def _wanted(config: bytes, directory: Path) -> dict[str, OciImage]:
    """What runs, by digest, in the order of digests."""
    layouts = layouts_in(directory)
    found: dict[str, OciImage] = {}
    for reference in references(config):
        if reference.played or reference.digest in found:
            continue
        image = find_image(layouts, reference.digest)
        if image is None:
            raise reference.field.error(f"{directory} holds no image {reference.digest}")
        found[reference.digest] = image
    return dict(sorted(found.items()))


def _remade(image: Image, wanted: dict[str, OciImage], scratch: Path) -> Image:
    base = scratch / "base"
    _extract(image.files[Artifact.ROOT_DISK], base, scratch)

    def write(out: IO[bytes]) -> None:
        tar = TarWriter(out)
        for path in sorted(base.rglob("*")):
            tar.add(path.relative_to(base).as_posix(), _node(path))
        tar.add(_DIRECTORY, Node(NodeKind.DIRECTORY))
        for digest, one in wanted.items():
            layers = scratch / digest.partition(":")[2]
            layers.mkdir()
            place = f"{_DIRECTORY}/{layers.name}"
            tar.add(place, Node(NodeKind.DIRECTORY))
            tar.add(f"{place}/config.json", Node(NodeKind.FILE, mode=0o644, content=one.config))
            tar.add(f"{place}/rootfs", merge(one, layers).root)
        tar.close()

    squashfs, disk = scratch / "squashfs", scratch / "disk"
    owned = ("-root-mode", "0755", "-root-uid", "0", "-root-gid", "0")
    feed_tool(["sqfstar", *SQUASHFS_OPTIONS, *owned, str(squashfs)], write)
    forget_root_time(squashfs)
    root_hash = make_root_disk(squashfs, disk)
    return replace(
        image,
        version=f"{image.version}-{root_hash[:_NAMED]}",
        root_hash=root_hash,
        files={**image.files, Artifact.ROOT_DISK: disk},
    )


def _extract(root_disk: Path, target: Path, scratch: Path) -> None:
    """The files of a root disk's first partition."""
    squashfs = scratch / "base.squashfs"
    try:
        with root_disk.open("rb") as disk, squashfs.open("wb") as out:
            partition = read_partitions(disk, root_disk.stat().st_size).get(1)
            if partition is None:
                raise ReleaseError(f"{root_disk} has no first partition")
            disk.seek(partition.offset)
            left = partition.size
            while left and (chunk := disk.read(min(left, _MIB))):
                out.write(chunk)
                left -= len(chunk)
    except GptError as error:
        raise ReleaseError(f"{root_disk}: {error}") from error
    run_tool(
        "unsquashfs", "-quiet", "-no-progress", "-no-xattrs", "-d", str(target), str(squashfs)
    )
    squashfs.unlink()
    if not (target / "guest").is_file() or (target / _DIRECTORY).exists():
        raise ReleaseError(f"{root_disk} is no root disk of the reference guest as it was built")


def _node(path: Path) -> Node:
    """A file of the guest's own, which all belong to root and have no time."""
    if path.is_symlink():
        return Node(NodeKind.SYMLINK, mode=0o777, target=str(path.readlink()))
    if path.is_dir():
        return Node(NodeKind.DIRECTORY)
    executable = os.access(path, os.X_OK)
    return Node(NodeKind.FILE, mode=0o755 if executable else 0o644, content=path.read_bytes())
