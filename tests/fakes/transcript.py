"""Documents whose blocks are run: `sh` goes to one shell, `text` is what it then has printed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_BLOCK = re.compile(r"^```(sh|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_MARK = "@@the block is done@@"
ANY = "…"  # alone on a line: any lines; within one: any text


@dataclass(frozen=True)
class Step:
    """A block of commands, and the lines that they print."""

    commands: str
    printed: tuple[str, ...]


def steps_of(document: Path) -> list[Step]:
    """In the document's order."""
    steps: list[Step] = []
    for kind, text in _BLOCK.findall(document.read_text()):
        if kind == "sh":
            steps.append(Step(text, ()))
        else:
            assert steps
            assert not steps[-1].printed, "two outputs in a row"
            steps[-1] = Step(steps[-1].commands, tuple(text.splitlines()))
    return steps


def agrees(expected: tuple[str, ...], lines: list[str]) -> bool:
    """Whether lines are as a document has them."""
    pattern = "".join(
        "(?:.*\n)*" if line == ANY else ".*".join(map(re.escape, line.split(ANY))) + "\n"
        for line in expected
    )
    return re.fullmatch(pattern, "".join(f"{line.rstrip()}\n" for line in lines)) is not None


class Shell:
    """One bash, which ends at the first command that fails."""

    def __init__(self, directory: Path, environment: Mapping[str, str]) -> None:
        self._directory = directory
        self._environment = environment
        self._process: asyncio.subprocess.Process | None = None

    async def run(self, commands: str) -> list[str]:
        """What they print, on stdout and stderr. Fails if they fail."""
        process = self._process or await self._begin()
        assert process.stdin is not None
        assert process.stdout is not None
        # None of them reads what comes after it.
        group = f"{{\n{commands}\n}} </dev/null\nprintf '\\n%s\\n' '{_MARK}'\n"
        process.stdin.write(group.encode())
        lines: list[str] = []
        while line := (await process.stdout.readline()).decode():
            if line.strip() == _MARK:
                return lines[:-1] if lines and not lines[-1] else lines
            lines.append(line.rstrip("\n"))
        raise AssertionError(f"{commands}\nfailed after\n" + "\n".join(lines))

    async def close(self) -> None:
        """Its end, and that of what it began in the background."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            await self._process.wait()

    async def _begin(self) -> asyncio.subprocess.Process:
        self._process = await asyncio.create_subprocess_exec(
            *("bash", "-euo", "pipefail", "-s"),
            cwd=self._directory,
            env=self._environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=1 << 20,
            start_new_session=True,
        )
        return self._process
