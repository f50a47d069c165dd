"""Laying an image's layers over each other: what its container finds at `/`.

Every layer's bytes are checked twice: the blob by the manifest's digest while it is read, and what
it unpacks to by the config's diff id. Device nodes and extended attributes are left out: a
container's devices are its runtime's, and the guest's containers gain no privilege by a file.
"""

from __future__ import annotations

import gzip
import hashlib
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from agent.releases.oci.layout import Layer, OciImage, checked_chunks
from agent.releases.oci.tree import Node, NodeKind, Tree
from agent.releases.port import ReleaseError

_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_CHUNK = 1 << 20
_MAX_UNPACKED = 64 << 30
_MAX_MEMBERS = 2_000_000


@dataclass(frozen=True, slots=True)
class Span:
    """A file's bytes within an unpacked layer."""

    layer: Path
    member: tarfile.TarInfo


def merge(image: OciImage, scratch: Path) -> Tree:
    """The image's tree; the unpacked layers lie in `scratch` as long as it is used."""
    tree = Tree()
    tree.root.mode = 0o755
    for number, layer in enumerate(image.layers):
        path = scratch / f"layer-{number}"
        _unpack(layer, path)
        try:
            _apply(tree, path)
        except tarfile.TarError as error:
            raise ReleaseError(f"layer {layer.digest} is not a tar archive") from error
    return tree


def _unpack(layer: Layer, path: Path) -> None:
    """Write what a layer's blob unpacks to, and compare it with the diff id."""
    packed = path.with_suffix(".packed")
    with packed.open("wb") as out:
        for chunk in checked_chunks(layer):
            out.write(chunk)
    hashed, size = hashlib.sha256(), 0
    with path.open("wb") as out:
        for chunk in _unpacked(packed, layer):
            size += len(chunk)
            if size > _MAX_UNPACKED:
                raise ReleaseError(f"layer {layer.digest} unpacks to over {_MAX_UNPACKED} bytes")
            hashed.update(chunk)
            out.write(chunk)
    packed.unlink()
    if f"sha256:{hashed.hexdigest()}" != layer.diff_id:
        raise ReleaseError(f"layer {layer.digest} does not unpack to {layer.diff_id}")


def _unpacked(packed: Path, layer: Layer) -> Iterator[bytes]:
    with packed.open("rb") as file:
        magic = file.read(4)
    try:
        if magic.startswith(_GZIP):
            with gzip.open(packed) as plain:
                yield from _chunks(plain)
        elif magic == _ZSTD:
            yield from _zstd(packed)
        else:
            with packed.open("rb") as plain:
                yield from _chunks(plain)
    except (OSError, EOFError) as error:
        raise ReleaseError(f"layer {layer.digest} cannot be unpacked: {error}") from error


def _zstd(packed: Path) -> Iterator[bytes]:
    try:
        process = subprocess.Popen(
            ["zstd", "-dcq", str(packed)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
    except FileNotFoundError:
        raise ReleaseError("a layer is packed with zstd: apt-get install zstd") from None
    with process:
        assert process.stdout is not None
        yield from _chunks(process.stdout)
    if process.returncode:
        raise OSError("zstd does not read it")


def _chunks(file: IO[bytes] | gzip.GzipFile) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK):
        yield chunk


def _apply(tree: Tree, path: Path) -> None:
    """Whiteouts first, for they are about lower layers only; then everything else."""
    with tarfile.open(path, "r:") as archive:
        members = archive.getmembers()
    if len(members) > _MAX_MEMBERS:
        raise ReleaseError(f"a layer has more than {_MAX_MEMBERS} members")
    rest: list[tarfile.TarInfo] = []
    for member in members:
        parent, _, name = member.name.rstrip("/").rpartition("/")
        if name == _OPAQUE:
            tree.empty(parent)
        elif name.startswith(_WHITEOUT):
            hidden = name.removeprefix(_WHITEOUT)
            if hidden in {"", ".", ".."}:
                raise ReleaseError("a layer has a whiteout of no name")
            tree.hide(f"{parent}/{hidden}")
        else:
            rest.append(member)
    for member in rest:
        _add(tree, path, member)


def _add(tree: Tree, layer: Path, member: tarfile.TarInfo) -> None:
    if member.islnk():
        other = tree.find(member.linkname)
        if other is None or other.kind is NodeKind.DIRECTORY:
            raise ReleaseError("a layer has a hard link to what is not there")
        tree.put(member.name, other)
        return
    node = _node(layer, member)
    if node is not None:
        tree.put(member.name, node)


def _node(layer: Path, member: tarfile.TarInfo) -> Node | None:
    """None for what a container has no use for."""
    content: Span | None = None
    if member.isdir():
        kind = NodeKind.DIRECTORY
    elif member.issym():
        kind = NodeKind.SYMLINK
    elif member.isfifo():
        kind = NodeKind.FIFO
    elif member.isreg():
        kind, content = NodeKind.FILE, Span(layer, member)
    else:
        return None
    return Node(
        kind=kind,
        mode=member.mode & 0o7777,
        uid=member.uid,
        gid=member.gid,
        mtime=max(0, min(int(member.mtime), 0xFFFFFFFF)),
        target=member.linkname if kind is NodeKind.SYMLINK else "",
        content=content,
    )
