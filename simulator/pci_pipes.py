"""The files of a tree that are written, as pipes with its kernel behind them, for real writers.

Each pipe has two names: the one in the tree, which writers open, and one in a folder of ours,
which we open. Whoever looks for the holders of a device goes by the names of open files: he must
not find us. Writes are taken in their order; a reset goes on beside whatever else is written, as
the devices of a host do, and whoever asked for it waits for its end: the pipe is full until then.
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
_WRITER_MS = 2000  # a writer that waited has written by then
_IN_OPEN, _EVENT = 0x20, struct.Struct("iIII")
_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def served(kernel: PciKernel, *hung: str) -> Iterator[None]:
    """Answer, but not writes to files that end in one of `hung`: as an unbind of a held device."""
    with tempfile.TemporaryDirectory(prefix="pipes-", dir=kernel.tree.root.parent) as folder:
        readers = _open(_pipes(kernel, Path(folder)), hung)
        resets = _Resets(kernel, {fd: path for fd, path in readers.items() if _is_reset(path)})
        stop = threading.Event()
        thread = threading.Thread(target=_answer, args=(kernel, readers, resets, stop))
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            resets.close()
            for fd in readers:
                os.close(fd)


def _is_reset(path: Path) -> bool:
    return path.name == "reset"


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


class _Resets:
    """The pipes that ask for a reset: filled, so that a writer is known by its opening."""

    def __init__(self, kernel: PciKernel, pipes: dict[int, Path]) -> None:
        self._kernel = kernel
        self._threads: list[threading.Thread] = []
        self.fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        self._watched: dict[int, tuple[int, Path]] = {}
        for fd, path in pipes.items():
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PAGE)
            os.write(fd, bytes(_PAGE))
            watch = _libc.inotify_add_watch(self.fd, os.fsencode(path), _IN_OPEN)
            assert watch >= 0, os.strerror(ctypes.get_errno())
            self._watched[watch] = (fd, path)

    def begin(self) -> None:
        """For whoever has opened one since."""
        for watch, _, _, _ in _EVENT.iter_unpack(os.read(self.fd, _PAGE)):
            thread = threading.Thread(target=self._reset, args=self._watched[watch])
            thread.start()
            self._threads = [one for one in (*self._threads, thread) if one.is_alive()]

    def _reset(self, fd: int, path: Path) -> None:
        self._kernel.write(path, "1")
        waiting = select.poll()
        waiting.register(fd, select.POLLIN)
        with contextlib.suppress(BlockingIOError):  # another one's reset was quicker
            os.read(fd, _PAGE)
            if waiting.poll(_WRITER_MS):  # or it has died
                os.read(fd, _PAGE)
            os.write(fd, bytes(_PAGE))

    def close(self) -> None:
        for thread in self._threads:
            thread.join()
        os.close(self.fd)


def _answer(
    kernel: PciKernel, readers: dict[int, Path], resets: _Resets, stop: threading.Event
) -> None:
    poller = select.poll()
    poller.register(resets.fd, select.POLLIN)
    for fd, path in readers.items():
        if not _is_reset(path):
            poller.register(fd, select.POLLIN)
    while not stop.is_set():
        for fd, _ in poller.poll(20):
            if fd == resets.fd:
                resets.begin()
                continue
            for line in os.read(fd, _PAGE).decode().splitlines():
                kernel.write(readers[fd], line)
