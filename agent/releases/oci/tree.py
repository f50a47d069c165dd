"""A file tree in memory, laid together from layers; nothing of it touches a file system.

Invariant: every path stays within the tree. A name with `..` is refused; a symlink on the way to a
name is followed within the tree, as a container would see it.

Rules: OCI image specification 1.1, layer.md. A whiteout hides what lower layers have; a directory
over a directory changes only its attributes; all else replaces what is there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from agent.releases.port import ReleaseError

_MAX_LINKS = 40
_MAX_NAME = 255
_MAX_PATH = 4096


class NodeKind(Enum):
    """What a node is."""

    DIRECTORY = "directory"
    FILE = "file"
    SYMLINK = "symlink"
    FIFO = "fifo"


@dataclass(slots=True)
class Node:
    """One inode. `content` says where a file's bytes are; `target` is a symlink's."""

    kind: NodeKind
    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    target: str = ""
    content: object = None
    children: dict[str, Node] = field(default_factory=dict)


class Tree:
    """The tree, from its root."""

    def __init__(self) -> None:
        self.root = Node(NodeKind.DIRECTORY)

    def put(self, path: str, node: Node) -> None:
        """Put a node at a path; missing parents are made."""
        parent, name = self._place(path)
        if not name:
            self._take_attributes(self.root, node)
            return
        there = parent.children.get(name)
        if there and there.kind is node.kind is NodeKind.DIRECTORY:
            self._take_attributes(there, node)
        else:
            parent.children[name] = node

    def hide(self, path: str) -> None:
        """A whiteout: what is there goes, if anything is."""
        parent, name = self._place(path, making=False)
        if name:
            parent.children.pop(name, None)

    def empty(self, path: str) -> None:
        """An opaque whiteout: a directory's members go."""
        found = self._walk(_parts(path), making=False)
        if found is not None:
            found.children.clear()

    def find(self, path: str) -> Node | None:
        """The node at a path, a symlink itself and not what it points to."""
        parent, name = self._place(path, making=False)
        return parent.children.get(name) if name else self.root

    @staticmethod
    def _take_attributes(there: Node, node: Node) -> None:
        if node.kind is not NodeKind.DIRECTORY:
            raise ReleaseError("a layer puts something that is no directory at the root")
        there.mode, there.uid, there.gid, there.mtime = node.mode, node.uid, node.gid, node.mtime

    def _place(self, path: str, *, making: bool = True) -> tuple[Node, str]:
        """The directory that holds a name, and the name; it is empty for the root itself."""
        parts = _parts(path)
        if not parts:
            return self.root, ""
        parent = self._walk(parts[:-1], making=making)
        return parent or Node(NodeKind.DIRECTORY), parts[-1]

    def _walk(self, parts: list[str], *, making: bool) -> Node | None:
        """The directory at a path, through symlinks; None if it is not there and not made."""
        trail = [self.root]
        left = list(reversed(parts))
        hops = 0
        while left:
            part = left.pop()
            if part == "..":  # of a symlink's target: the root is its own parent
                trail = trail[:-1] or trail
                continue
            here = trail[-1]
            node = here.children.get(part)
            if node is None or node.kind in {NodeKind.FILE, NodeKind.FIFO}:
                if not making:
                    return None
                node = here.children[part] = Node(NodeKind.DIRECTORY)
            if node.kind is NodeKind.SYMLINK:
                hops += 1
                if hops > _MAX_LINKS:
                    raise ReleaseError("a layer's path leads through too many symlinks")
                if node.target.startswith("/"):
                    trail = [self.root]
                left.extend(reversed([p for p in node.target.split("/") if p not in {"", "."}]))
                continue
            trail.append(node)
        return trail[-1]


def _parts(path: str) -> list[str]:
    """The components of a member's name: relative to the root, whatever it begins with."""
    parts = [part for part in path.split("/") if part not in {"", "."}]
    if ".." in parts:
        raise ReleaseError("a layer's path leads out of it with ..")
    if len(path) > _MAX_PATH or any(len(part.encode()) > _MAX_NAME for part in parts):
        raise ReleaseError("a layer has a path that is too long")
    return parts
