"""Which machine it was measured on, and how busy it was otherwise."""

from __future__ import annotations

import asyncio
import os
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

_BUSY = 0.15  # of one core, by others, that a final run tolerates


def describe() -> str:
    """One line: processors, memory, kernel, programs."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    memory_mib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    return (
        f"{os.cpu_count()} × {cpu}, {memory_mib} MiB, Linux {platform.release()}, "
        f"{_version('qemu-system-x86_64')}, {_version('nft')}, Python {platform.python_version()}"
    )


def _version(program: str) -> str:
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    except OSError:
        return f"no {program}"
    return done.stdout.splitlines()[0].partition("(")[0].replace("version ", "").strip()


def load() -> str:
    """Load averages, now."""
    return "load " + " ".join(f"{value:.2f}" for value in os.getloadavg())


async def busy_cores(seconds: float = 2.0) -> float:
    """Cores in use by anybody, over some seconds. What a host above us steals counts too."""
    before, started = _busy_s(), time.monotonic()
    await asyncio.sleep(seconds)
    return (_busy_s() - before) / (time.monotonic() - started)


def _busy_s() -> float:
    fields = list(map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]))
    user, nice, system, _idle, _iowait, irq, softirq, steal = fields[:8]
    ticks = user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK")


async def wait_quiet(patience_s: float, say: Callable[[str], None]) -> str:
    """Wait until others leave the machine alone, but not for ever; says what it was like then."""
    deadline, told = time.monotonic() + patience_s, False
    while True:
        busy = await busy_cores()
        if busy <= _BUSY or time.monotonic() >= deadline:
            return f"others used {busy:.2f} cores before it; {load()}"
        if not told:
            say(f"others use {busy:.2f} cores; waiting at most {patience_s:.0f} s for quiet")
            told = True
        await asyncio.sleep(3)
