"""Nothing of a test run stays behind, however it ended: a guardian sees to it from outside.

    python -m tests.leftovers PID DIRECTORY...

Everything that the tests make lies in the run's own directories, and every process that they
start has the mark of the run in its environment or an argument that names one of the directories.
The guardian waits until the run asks for the end, or is gone (killed -9, say). Then it ends
those processes, takes back what their daemons made on the host (links, tables, sysctls, secrets in
shared memory), unmounts what is mounted there, and removes the directories. To a run that is still
there it tells what it had to end, a line each: a test should have done so.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MARK = "EA_TEST_RUN"
_PROC = Path("/proc")
_AT_MOST_S = 20.0
_PAUSE_S = 0.03


def _runtime_directory() -> str | None:
    path = os.environ.get("XDG_RUNTIME_DIR")
    return path if path and os.access(path, os.W_OK) else None


def short_place(prefix: str) -> Path:
    """A private directory with a path short enough for unix sockets (108 bytes)."""
    return Path(tempfile.mkdtemp(prefix=prefix, dir=_runtime_directory()))


class Run:
    """The directories of this test run, and its guardian.

    `files` is for whatever has no better place, `places` is where `short_place`s are.
    """

    def __init__(self) -> None:
        self.files = Path(tempfile.mkdtemp(prefix="ea-"))
        self.places = self.files
        if _runtime_directory():
            self.places = short_place("ea-")
        for directory in {self.files, self.places}:  # what a test opens to others is in there
            directory.chmod(0o711)
        os.environ |= {MARK: str(self.files), "TMPDIR": str(self.files)}
        if self.places != self.files:
            os.environ["XDG_RUNTIME_DIR"] = str(self.places)
        tempfile.tempdir = str(self.files)
        self._guardian: subprocess.Popen[str] | None = subprocess.Popen(
            [sys.executable, "-m", "tests.leftovers", str(os.getpid()), *self._directories()],
            cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def _directories(self) -> list[str]:
        return [str(path) for path in dict.fromkeys((self.files, self.places))]

    def end(self) -> list[str]:
        """Have everything cleaned up; returns the processes that were still there."""
        guardian, self._guardian = self._guardian, None
        if guardian is None:
            return []
        assert guardian.stdin is not None
        assert guardian.stdout is not None
        with guardian.stdin as pipe, contextlib.suppress(BrokenPipeError):
            pipe.write("end\n")
        found = guardian.stdout.read().splitlines()
        guardian.stdout.close()
        guardian.returncode = 0  # it watches until we are gone: nobody waits for it
        return found


def main(pid: int, directories: list[Path]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    try:
        run = os.pidfd_open(pid)
    except ProcessLookupError:
        clean(directories)
        return
    if sys.stdin.readline():  # nothing: it is gone, or about to be
        told = "".join(f"{line}\n" for line in clean(directories, besides=pid))
        with contextlib.suppress(BrokenPipeError):
            os.write(1, told.encode(errors="replace"))
    os.close(1)  # that is all: it need not wait any longer
    select.select([run], [], [])
    clean(directories)


def clean(directories: list[Path], besides: int | None = None) -> list[str]:
    """Leave nothing; returns what ran. The run of this pid, and its helpers, are left alone."""
    ended: dict[int, str] = {}
    deadline = time.monotonic() + _AT_MOST_S
    while True:
        ended |= _end_processes(directories, besides, deadline)
        for directory in directories:
            _take_back(directory)
        _unmount(directories)
        for directory in (*directories, *_on_disk(directories[0])):
            _remove(directory, run_is_there=besides is not None)
        gone = not any(_is_there(directory, besides) for directory in directories)
        if gone or time.monotonic() > deadline:
            return [f"{pid}: {told}" for pid, told in ended.items()]
        time.sleep(_PAUSE_S)


def _is_there(directory: Path, besides: int | None) -> bool:
    return directory.exists() and (besides is None or not any(directory.glob("pymp-*")))


def _end_processes(
    directories: list[Path], besides: int | None, deadline: float
) -> dict[int, str]:
    """Until there was none twice: one that is becoming another program is not seen."""
    ended: dict[int, str] = {}
    looks_without = 0
    while looks_without < 2 and time.monotonic() < deadline:
        found = processes_of(directories, besides)
        looks_without = 0 if found else looks_without + 1
        ended |= found
        for pid in found:
            _kill(pid)
        time.sleep(_PAUSE_S)
    return ended


def _unmount(directories: list[Path]) -> None:
    places = [f"{directory}/" for directory in directories]
    mounts = (_PROC / "self/mounts").read_text().splitlines()
    for mounted in reversed([line.split(" ")[1] for line in mounts]):
        if any(mounted.startswith(place) for place in places):
            subprocess.run(["umount", "--lazy", mounted], check=False, capture_output=True)


def place_on_disk(prefix: str) -> Path:
    """A directory of this run, if there is one, where no memory is taken for what is in it."""
    run = Path(os.environ.get(MARK, "ea-host")).name
    return Path(tempfile.mkdtemp(prefix=f"{run}.{prefix}", dir="/var/tmp"))


def _on_disk(files: Path) -> list[Path]:
    return list(Path("/var/tmp").glob(f"{files.name}.*"))


def processes_of(directories: list[Path], besides: int | None = None) -> dict[int, str]:
    """Pid and arguments of what belongs to a run, but for zombies, which nobody need end."""
    places = [os.fsencode(directory) + b"/" for directory in directories]
    mark = f"{MARK}={directories[0]}".encode()
    found = {}
    for entry in _PROC.iterdir():
        if not entry.name.isdigit() or int(entry.name) in (os.getpid(), besides):
            continue
        with contextlib.suppress(OSError):
            argv = (entry / "cmdline").read_bytes()
            environment: list[bytes] = []
            with contextlib.suppress(PermissionError):
                environment = (entry / "environ").read_bytes().split(b"\0")
            mine = mark in environment or any(place in argv for place in places)
            helper = b"multiprocessing" in argv and _parent(entry) == besides
            if argv and mine and not helper:
                found[int(entry.name)] = argv.replace(b"\0", b" ").decode(errors="replace")
    return found


def _remove(directory: Path, *, run_is_there: bool) -> None:
    """All of it, but for what multiprocessing removes itself as the run ends."""
    own = set(directory.glob("pymp-*")) if run_is_there else set()
    for entry in set(directory.iterdir()) - own if own else ():
        shutil.rmtree(entry, ignore_errors=True)
    if not own:
        shutil.rmtree(directory, ignore_errors=True)


def _parent(entry: Path) -> int:
    return int((entry / "stat").read_text().rpartition(") ")[2].split()[1])


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _take_back(directory: Path) -> None:
    """What daemons that had their configuration in a place of this run made on the host."""
    files = [*directory.glob("*/agent.yaml"), *directory.glob("*/*/agent.yaml")]
    if not files:
        return
    from agent.config_file import load_config
    from agent.daemon.parts import restore_host, secrets_dir

    for file in files:
        with contextlib.suppress(Exception):  # a test may have written any nonsense there
            config = load_config(file, {})
            shutil.rmtree(secrets_dir(config), ignore_errors=True)
            asyncio.run(restore_host(config))


if __name__ == "__main__":
    main(int(sys.argv[1]), [Path(word) for word in sys.argv[2:]])
