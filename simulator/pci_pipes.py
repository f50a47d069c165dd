"""The files of a tree that are written, as pipes with its kernel behind them, for real writers.

Each pipe has two names: the one in the tree, which writers open, and one in a folder of ours,
which we open. Whoever looks for the holders of a device goes by the names of open files: he must
not find us. Drivers' files are taken in the order of their writes, and whoever writes looks for
what came of it. A reset, a removal and a rescan go on beside whatever else is written, and whoever
asked for one waits for its end: the pipe is full until then. So the kernel does: reset_store,
remove_store and dev_rescan_store of drivers/pci/pci-sysfs.c return when all is done.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import select
import struct
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from simulator.pci_kernel import PciKernel

_PAGE = 4096
_LOOK_MS = 20
_AWAITED = ("reset", "remove", "rescan")
_IN_CLOSE_WRITE, _IN_OPEN, _EVENT = 0x08, 0x20, struct.Struct("iIII")
_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def served(kernel: PciKernel, *hung: str) -> Iterator[None]:
    """Answer, but not writes to files that end in one of `hung`: as an unbind of a held device.

    What was written until the end is done then.
    """
    with tempfile.TemporaryDirectory(prefix="pipes-", dir=kernel.tree.root.parent) as folder:
        readers = _open(_pipes(kernel, Path(folder)), hung)
        awaited = _Awaited(kernel, {fd: path for fd, path in readers.items() if _is_awaited(path)})
        stop = threading.Event()
        thread = threading.Thread(target=_answer, args=(kernel, readers, awaited, stop))
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            awaited.close()
            for fd in readers:
                os.close(fd)


def _is_awaited(path: Path) -> bool:
    return path.name in _AWAITED


def _pipes(kernel: PciKernel, folder: Path) -> dict[Path, Path]:
    """Our name of each, and the one in the tree, where a file or an older pipe may have been."""
    files = [kernel.tree.root / "bus/pci/drivers_probe"]
    for driver in (kernel.tree.root / "bus/pci/drivers").iterdir():
        files += [driver / "bind", driver / "unbind"]
    for path in kernel.tree.devices.iterdir():
        files += [path / "reset", path / "remove", path / "rescan"]
    made = {}
    for number, path in enumerate(files):
        ours = folder / str(number)
        os.mkfifo(ours)
        path.unlink(missing_ok=True)
        path.hardlink_to(ours)
        made[ours] = path
    return made


def _open(pipes: dict[Path, Path], hung: tuple[str, ...]) -> dict[int, Path]:
    return {
        os.open(ours, os.O_RDWR | os.O_NONBLOCK): path
        for ours, path in pipes.items()
        if not str(path).endswith(hung or ("\0",))
    }


class _Awaited:
    """The pipes of what is waited for: filled, so that a writer is known by its opening."""

    def __init__(self, kernel: PciKernel, pipes: dict[int, Path]) -> None:
        self._kernel = kernel
        self._threads: list[threading.Thread] = []
        self._closing = threading.Event()
        self.fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        self._watched: dict[int, tuple[int, Path]] = {}
        self._closed: dict[int, int] = {}  # by pipe: how often a writer was done with it
        for fd, path in pipes.items():
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PAGE)
            os.write(fd, bytes(_PAGE))
            mask = _IN_OPEN | _IN_CLOSE_WRITE
            watch = _libc.inotify_add_watch(self.fd, os.fsencode(path), mask)
            assert watch >= 0, os.strerror(ctypes.get_errno())
            self._watched[watch] = (fd, path)
            self._closed[fd] = 0

    def begin(self) -> None:
        """For whoever has opened one since."""
        for watch, mask, _, _ in _EVENT.iter_unpack(os.read(self.fd, _PAGE)):
            fd, path = self._watched[watch]
            if mask & _IN_CLOSE_WRITE:
                self._closed[fd] += 1
            elif mask & _IN_OPEN:
                thread = threading.Thread(target=self._do, args=(fd, path, self._closed[fd]))
                thread.start()
                self._threads = [one for one in (*self._threads, thread) if one.is_alive()]

    def _do(self, fd: int, path: Path, closed: int) -> None:
        self._kernel.write(path, "1")
        waiting = select.poll()
        waiting.register(fd, select.POLLIN)
        with contextlib.suppress(BlockingIOError):  # another one's was quicker
            os.read(fd, _PAGE)
            ended = False
            while not (written := waiting.poll(_LOOK_MS)) and not ended:
                ended = self._closed[fd] > closed or self._closing.is_set()  # without a write
            if written:
                os.read(fd, _PAGE)
            os.write(fd, bytes(_PAGE))

    def close(self) -> None:
        self._closing.set()
        for thread in self._threads:
            thread.join()
        os.close(self.fd)


def _answer(
    kernel: PciKernel, readers: dict[int, Path], awaited: _Awaited, stop: threading.Event
) -> None:
    poller = select.poll()
    poller.register(awaited.fd, select.POLLIN)
    for fd, path in readers.items():
        if not _is_awaited(path):
            poller.register(fd, select.POLLIN)
    while (written := poller.poll(_LOOK_MS)) or not stop.is_set():
        for fd, _ in written:
            if fd == awaited.fd:
                awaited.begin()
                continue
            for line in os.read(fd, _PAGE).decode().splitlines():
                kernel.write(readers[fd], line)
