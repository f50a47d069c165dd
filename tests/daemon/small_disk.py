"""A daemon whose state is on a small file system of its own."""

from __future__ import annotations

import errno
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from tests.fakes.daemon_process import Daemon, place
from tests.fakes.fake_vms import settings
from tests.fakes.warm_start import WARM

DISK_KIB = 64 * 1024
INODES = 2000
UPDATE = {"dwell_s": 0.3, "soak_s": 0.3, "drain_s": 1, "stop_grace_s": 1}


class Disk:
    """A small file system, and a file that fills it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filler = path / "filler"
        path.mkdir()
        options = f"size={DISK_KIB}k,nr_inodes={INODES},mode=700"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "ead-disk", path], check=True)

    def fill(self, leave_kib: int = 0) -> None:
        """All of it but so much."""
        with self._filler.open("ab", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                file.truncate(file.tell() // 4096 * 4096 - leave_kib * 1024)

    def use_up_inodes(self) -> None:
        """Bytes are left; a file or directory more there cannot be."""
        place = self.path / "many"
        place.mkdir()
        try:
            for number in range(INODES):
                (place / str(number)).touch()
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
        else:
            raise AssertionError("there are always more inodes")

    @contextmanager
    def read_only(self) -> Iterator[None]:
        """As the kernel makes it after an error, for whoever opens a file there from now on."""
        subprocess.run(["mount", "--bind", self.path, self.path], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", self.path], check=True)
        try:
            yield
        finally:
            subprocess.run(["umount", self.path], check=True)

    def free(self) -> None:
        self._filler.unlink(missing_ok=True)
        shutil.rmtree(self.path / "many", ignore_errors=True)

    def close(self) -> None:
        subprocess.run(["umount", self.path], check=True)


@asynccontextmanager
async def on_a_small_disk(
    program: Path, source: Path, **changes: Any
) -> AsyncIterator[tuple[Daemon, Disk]]:
    """A daemon, not started, and the disk that its state is on. `changes`: to its settings.

    `launch` among them: of a daemon that halts on order.
    """
    home = place()
    environment = changes.pop("environment", {})
    launch = changes.pop("launch", None)
    conf = settings(program, update=UPDATE, **changes)
    how = {"environment": environment} if environment else WARM
    daemon = Daemon(home, source, settings=conf, **how)
    if launch is not None:
        daemon.launch, daemon.command = launch, ("--orders", str(home / "orders"))
    disk = Disk(daemon.state)
    try:
        yield daemon, disk
    finally:
        disk.free()
        await daemon.leave()
        disk.close()
        shutil.rmtree(home, ignore_errors=True)


async def deployed(daemon: Daemon) -> None:
    """With a deployment that serves v1."""
    await daemon.up()
    assert (await daemon.deploy(tag="v1")).status == 202
    assert (await daemon.over())["status"] == "completed"


async def problems_of(daemon: Daemon) -> set[str]:
    """The codes."""
    return {problem["code"] for problem in (await daemon.get("/status")).body["problems"]}
