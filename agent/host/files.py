"""Files that are whole or not there, whatever crashes when; private directories; the one lock.

Invariant: a path that `write_atomic` returned for holds exactly those bytes after a power cut; one
that it raised for holds what it held before (or, if only the directory could not be synced, the
new bytes, but perhaps not after a power cut). Everything here blocks for as long as the disk does.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from agent.errors import AgentError

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_SCRATCH = ".new"


class StorageError(AgentError):
    """A file or directory could not be read or written. The text names it."""

    @property
    def code(self) -> str:
        return "storage_unavailable"


class StorageFullError(StorageError):
    """No space left on the device, or the quota is used up."""

    @property
    def code(self) -> str:
        return "disk_full"


class StorageReadOnlyError(StorageError):
    """The file system is mounted read-only, as the kernel does after errors of its disk."""

    @property
    def code(self) -> str:
        return "disk_read_only"


class FileAbsentError(StorageError):
    """It is not there."""


class LockHeldError(AgentError):
    """Another process has the lock. `pid` is None when it has not said its own yet."""

    def __init__(self, path: Path, pid: int | None) -> None:
        who = f"process {pid}" if pid else "another process"
        super().__init__(f"{who} already runs here: it holds {path}")
        self.path = path
        self.pid = pid

    @property
    def code(self) -> str:
        return "already_running"


@contextlib.contextmanager
def storage_errors(verb: str, path: Path) -> Iterator[None]:
    """Turn an OSError of the body into a StorageError that says what could not be done."""
    try:
        yield
    except OSError as error:
        kind = StorageError
        if error.errno in _NO_SPACE:
            kind = StorageFullError
        elif error.errno == errno.EROFS:
            kind = StorageReadOnlyError
        elif isinstance(error, FileNotFoundError):
            kind = FileAbsentError
        raise kind(f"cannot {verb} {path}: {error.strerror or error}") from error


def write_atomic(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Make the file hold `data`, with exactly this mode, whether it is there or not.

    Readers see the old bytes or the new ones. Raises StorageFullError or StorageError, having
    changed and left nothing.
    """
    scratch = path.with_name(f".{secrets.token_hex(8)}{_SCRATCH}")
    with storage_errors("write", path):
        fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            with os.fdopen(fd, "wb", buffering=0) as file:
                _write_all(file.fileno(), data)
                os.fchmod(file.fileno(), mode)
                os.fsync(file.fileno())
            scratch.rename(path)
        except BaseException:
            scratch.unlink(missing_ok=True)
            raise
        sync_directory(path.parent)


def _write_all(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def remove_scratch(directory: Path) -> None:
    """Remove what writes that were killed half-way left in a directory."""
    with storage_errors("clean", directory):
        for entry in directory.glob(f".*{_SCRATCH}"):
            entry.unlink(missing_ok=True)


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """A regular file's bytes. Raises FileAbsentError; StorageError if it is longer or no file.

    Never waits: a named pipe or a device is refused unread.
    """
    with storage_errors("read", path):
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with os.fdopen(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise StorageError(f"cannot read {path}: not a regular file")
            data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise StorageError(f"cannot read {path}: longer than {max_bytes} bytes")
    return data


def open_beneath(root: Path, path: str) -> int:
    """A descriptor to read a file under `root`, never one outside of it.

    A symlink is followed only to where it stays beneath the root; one that is put in the way
    meanwhile is not. Raises FileNotFoundError, OSError (ELOOP for one that leads out).
    """
    real_root = root.resolve(strict=True)
    real = (root / path).resolve(strict=True)
    if not real.is_relative_to(real_root):
        raise OSError(errno.ELOOP, "a symlink leads out of it", str(root / path))
    descriptor = os.open(real_root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    *directories, name = real.relative_to(real_root).parts or (".",)
    try:
        for part in directories:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            below = os.open(part, flags, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        return os.open(name, flags, dir_fd=descriptor)
    finally:
        os.close(descriptor)


def make_private_directory(path: Path, *, mode: int = 0o700) -> None:
    """Make the directory, and those above it that are missing, ours and with exactly this mode.

    One that is there is taken only if it is a directory and no link, and belongs to us (root may
    hand it to another user: then it is refused). Raises StorageError.
    """
    with storage_errors("make", path):
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            found = os.fstat(fd)
            if found.st_uid != os.geteuid():
                raise StorageError(f"cannot use {path}: it belongs to user {found.st_uid}")
            if stat.S_IMODE(found.st_mode) != mode:
                os.fchmod(fd, mode)
        finally:
            os.close(fd)


def in_memory(directory: Path) -> bool:
    """Whether what is written there never reaches a disk: it lies on a tmpfs or ramfs.

    Told by the mount with the longest matching path in /proc/self/mountinfo (proc(5)).
    """
    real = directory.resolve()
    best, kind = -1, ""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        head, _, tail = line.partition(" - ")
        # spaces and the like in a path are written as octal escapes
        mount = Path(head.split()[4].encode().decode("unicode_escape"))
        if (real == mount or mount in real.parents) and len(mount.parts) >= best:
            best, kind = len(mount.parts), tail.split()[0]
    return kind in {"tmpfs", "ramfs"}


def sync_directory(path: Path) -> None:
    """Make what was created, renamed or removed in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class FileLock:
    """An exclusive lock, held until closed or until the process ends, however it ends."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd = fd

    def close(self) -> None:
        """Let go. The file stays: removing it would let two processes lock two files."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def lock_exclusive(path: Path) -> FileLock:
    """Take the lock without waiting. Raises LockHeldError with the holder's pid, StorageError.

    Programs that we start do not inherit it.
    """
    with storage_errors("lock", path):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(fd, 0)
            os.pwrite(fd, b"%d\n" % os.getpid(), 0)
        except BlockingIOError as error:
            holder = os.pread(fd, 32, 0).strip()
            os.close(fd)
            pid = int(holder) if holder.isdigit() else None
            raise LockHeldError(path, pid) from error
        except BaseException:
            os.close(fd)
            raise
    return FileLock(path, fd)
