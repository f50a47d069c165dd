"""One VM after the other, by the hand-written script `stop_then_start.sh`: no agent anywhere."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path

from bench.bare_vm import BareVm
from bench.daemon import BenchError
from bench.place import Place
from bench.processes import pids_with, stop_pids

_SCRIPT = Path(__file__).with_name("stop_then_start.sh")
_MOMENTS = ("pressed", "gone", "started")
_PATIENCE_S = 60.0


class Changeover:
    """The script, with the old VM running."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def go(self) -> dict[str, float]:
        """Change over. When the button was pressed, the old one gone, and the new one started."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"\n")
        moments: dict[str, float] = {}
        try:
            async with asyncio.timeout(_PATIENCE_S):
                for name in _MOMENTS:
                    word, _, at = (await self._process.stdout.readline()).decode().partition(" ")
                    if word != name:
                        raise BenchError(f"stop_then_start.sh ended before {name!r}")
                    moments[name] = float(at)
        except TimeoutError:
            raise BenchError(f"the bare VM did not power off in {_PATIENCE_S:.0f} s") from None
        return moments


@contextlib.asynccontextmanager
async def changeover(place: Place, old: BareVm, new: BareVm) -> AsyncIterator[Changeover]:
    """Both VMs get the same network card; what runs is gone after the block."""
    async with old.card() as nic:
        with ExitStack() as held:
            files: list[Path] = []
            inherited: list[int] = []
            for name, vm in (("old", old), ("new", new)):
                argv, fds = vm.command(nic, held)
                files.append(_write(place.state / f"bare-{name}", argv))
                inherited += fds
            process = await asyncio.create_subprocess_exec(
                *(str(_SCRIPT), *map(str, files)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                start_new_session=True,
                pass_fds=inherited,
            )
        try:
            yield Changeover(process)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await asyncio.shield(_gone(place, process))


async def _gone(place: Place, process: asyncio.subprocess.Process) -> None:
    """The VM dies with the script, but a moment later."""
    await process.wait()
    await stop_pids(pids_with(str(place.bare_qmp)))


def _write(path: Path, argv: list[str]) -> Path:
    """An argument a line; QEMU is to end with its guest, which is what it does by default."""
    path.write_text("".join(f"{word}\n" for word in argv if word != "-no-shutdown"))
    return path
