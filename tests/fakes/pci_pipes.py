"""The files of a tree that are written, as pipes with its kernel behind them, for real writers.

Each pipe has two names: the one in the tree, which writers open, and one in a folder of ours,
which we open. Whoever looks for the holders of a device goes by the names of open files: he must
not find us. Writes are taken in their order; a reset goes on beside whatever else is written, as
the devices of a host do.
"""

from __future__ import annotations

import contextlib
import os
import select
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from tests.fakes.pci_kernel import PciKernel


@contextlib.contextmanager
def served(kernel: PciKernel, *hung: str) -> Iterator[None]:
    """Answer, but not writes to files that end in one of `hung`: as an unbind of a held device."""
    with tempfile.TemporaryDirectory(prefix="pipes-", dir=kernel.tree.root.parent) as folder:
        readers = _open(_pipes(kernel, Path(folder)), hung)
        stop = threading.Event()
        thread = threading.Thread(target=_answer, args=(kernel, readers, stop))
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            for fd in readers:
                os.close(fd)


def _pipes(kernel: PciKernel, folder: Path) -> dict[Path, Path]:
    """Our name of each, and the one in the tree, where a file or an older pipe may have been."""
    files = [kernel.tree.root / "bus/pci/drivers_probe"]
    for driver in (kernel.tree.root / "bus/pci/drivers").iterdir():
        files += [driver / "bind", driver / "unbind"]
    files += [path / "reset" for path in kernel.tree.devices.iterdir()]
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


def _answer(kernel: PciKernel, readers: dict[int, Path], stop: threading.Event) -> None:
    poller = select.poll()
    for fd in readers:
        poller.register(fd, select.POLLIN)
    resets: list[threading.Thread] = []
    while not stop.is_set():
        for fd, _ in poller.poll(20):
            for line in os.read(fd, 4096).decode().splitlines():
                if readers[fd].name == "reset":
                    reset = threading.Thread(target=kernel.write, args=(readers[fd], line))
                    reset.start()
                    resets = [one for one in (*resets, reset) if one.is_alive()]
                else:
                    kernel.write(readers[fd], line)
    for reset in resets:
        reset.join()
