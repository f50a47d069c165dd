"""Trees written as one tar stream, sorted: the same trees give the same bytes."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import IO

from agent.releases.oci.layers import Span
from agent.releases.oci.tree import Node, NodeKind

_TYPES = {
    NodeKind.DIRECTORY: tarfile.DIRTYPE,
    NodeKind.FILE: tarfile.REGTYPE,
    NodeKind.SYMLINK: tarfile.SYMTYPE,
    NodeKind.FIFO: tarfile.FIFOTYPE,
}


class TarWriter:
    """Writes trees at places of an archive that goes to `out`."""

    def __init__(self, out: IO[bytes]) -> None:
        self._tar = tarfile.open(  # noqa: SIM115 - `close` does
            fileobj=out, mode="w|", format=tarfile.PAX_FORMAT
        )
        self._layers: dict[Path, tarfile.TarFile] = {}
        # With the node itself: as long as it is kept, no other one has its identity.
        self._first: dict[int, tuple[str, Node]] = {}

    def add(self, path: str, node: Node) -> None:
        """A node at a path, and all under it. A file that was there already is linked to."""
        left = [(path, node)]
        while left:
            path, node = left.pop()
            self._add_one(path, node)
            left += [
                (f"{path}/{name}", node.children[name])
                for name in sorted(node.children, reverse=True)
            ]

    def close(self) -> None:
        """End the archive, and close what it was made of."""
        self._tar.close()
        for layer in self._layers.values():
            layer.close()

    def _add_one(self, path: str, node: Node) -> None:
        member = tarfile.TarInfo(path)
        member.mode, member.mtime = node.mode, node.mtime
        member.uid, member.gid = node.uid, node.gid
        member.type, member.linkname = _TYPES[node.kind], node.target
        first, _ = self._first.setdefault(id(node), (path, node))
        if first != path:
            member.type, member.linkname = tarfile.LNKTYPE, first
        data = self._data(member, node.content) if first == path else None
        self._tar.addfile(member, data)

    def _data(self, member: tarfile.TarInfo, content: object) -> IO[bytes] | None:
        """Where a file's bytes are read from; its size is set."""
        if isinstance(content, bytes):
            member.size = len(content)
            return io.BytesIO(content)
        if isinstance(content, Span):
            member.size = content.member.size
            layer = content.layer
            if layer not in self._layers:
                self._layers[layer] = tarfile.open(layer, "r:")  # noqa: SIM115 - `close` does
            return self._layers[layer].extractfile(content.member)
        return None
