"""The programs that make root disks, and the Debian packages that bring them.

Standard library only: the script that builds the reference guest runs this without the
project's environment.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_PACKAGES = {
    "mksquashfs": "squashfs-tools",
    "sqfstar": "squashfs-tools",
    "unsquashfs": "squashfs-tools",
    "veritysetup": "cryptsetup-bin",
    "sfdisk": "fdisk",
}
# Where distributions keep administrators' tools; an ordinary user's PATH lacks them.
_SBIN = ("/usr/sbin", "/sbin")


class DiskToolError(Exception):
    """A program is missing or failed; the text says which, and what it said."""


def run_tool(*argv: str, stdin: str | None = None) -> str:
    """Run a program to its end and return what it printed."""
    with _missing(argv[0]):
        result = subprocess.run(
            argv, input=stdin, capture_output=True, text=True, check=False, env=_environment()
        )
    _check(argv, result.returncode, result.stderr or result.stdout)
    return result.stdout


def feed_tool(argv: Sequence[str], write: Callable[[IO[bytes]], None]) -> None:
    """Run a program whose input `write` writes."""
    with _missing(argv[0]):
        process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=_environment(),
        )
    with process:
        assert process.stdin is not None
        assert process.stderr is not None
        broken = False
        try:
            write(process.stdin)
            process.stdin.close()
        except BrokenPipeError:
            broken = True
        except BaseException:
            process.kill()
            raise
        said = process.stderr.read().decode(errors="replace")
    _check(argv, process.returncode or int(broken), said)


def _check(argv: Sequence[str], status: int, said: str) -> None:
    if status:
        raise DiskToolError(f"{' '.join(argv[:3])}… failed ({status}):\n{said.strip()}")


@contextmanager
def _missing(program: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        package = _PACKAGES.get(program, program)
        raise DiskToolError(f"{program} is missing: apt-get install {package}") from None


def _environment() -> dict[str, str]:
    """The squashfs tools refuse fixed times together with SOURCE_DATE_EPOCH."""
    environment = {n: v for n, v in os.environ.items() if n != "SOURCE_DATE_EPOCH"}
    environment["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), *_SBIN])
    return environment


def pad(path: Path, unit: int) -> None:
    """Grow a file with zeros to a multiple of `unit`."""
    size = path.stat().st_size
    os.truncate(path, size + -size % unit)
