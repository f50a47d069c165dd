"""What a launch costs the agent itself: command line, predicted digest, lag of its loop."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from agent.enclaves.argv import build_argv
from agent.model.measurement import MeasuredLaunch
from agent.model.release import Artifact, LocalImage
from agent.releases.launch_digest import snp_launch_digest
from agent.releases.measurement import SnpMeasurements
from bench.daemon import BenchError, running
from bench.figures import Bound, Figure, median, percentile
from bench.place import ROOT, Place
from bench.releases import TAGS
from bench.show import Show
from bench.watched import worst_of
from simulator import rows
from tests.fakes import vm_specs
from tests.fakes.tiny_firmware import tiny_firmware

_KERNEL_MB, _INITRD_MB = 12, 63
_ARGVS, _PREDICTIONS = 200, 15


def argv_figure() -> Figure:
    """The largest that there is: 8 GPUs, 4 switches, models and volumes, on SEV-SNP."""
    spec = vm_specs.boards()["snp-kvm-tap-8-gpus-everything"]
    took = []
    for _ in range(_ARGVS):
        began = time.perf_counter()
        build_argv("qemu-system-x86_64", spec)
        took.append((time.perf_counter() - began) * 1000)
    note = f"{_ARGVS} times, p99 {percentile(took, 99):.2f} ms; SEV-SNP, 8 GPUs, 4 switches"
    return Figure("argv of a launch", median(took), "ms", bound=Bound(1), note=note)


async def prediction_figure(place: Place) -> Figure:
    """Hash and predict over files in the page cache, nothing of it remembered from before."""
    image = _image(place.state / "measured")
    assert image.firmware is not None
    launch = MeasuredLaunch(
        vcpus=16,
        firmware=image.firmware,
        kernel=image.kernel,
        initrd=image.initrd,
        cmdline=vm_specs.CMDLINE,
    )
    release = rows.release(
        cmdline=vm_specs.CMDLINE,
        snp_measurement=snp_launch_digest(launch).hex(),
        firmware_sha256="0" * 64,  # it is named; which file it is, was found before
        kernel=Artifact(name="kernel", sha256=None),
    )
    took = []
    for _ in range(_PREDICTIONS):
        began = time.perf_counter()
        await SnpMeasurements().check_image(release, image, launch.vcpus)
        took.append((time.perf_counter() - began) * 1000)
    return Figure(
        "prediction of a launch digest",
        median(took),
        "ms",
        bound=Bound(150),
        note=f"{_PREDICTIONS} times, p90 {percentile(took, 90):.0f} ms; "
        f"{_KERNEL_MB} MB kernel, {_INITRD_MB} MB initrd, 16 vCPUs",
    )


def _image(directory: Path) -> LocalImage:
    directory.mkdir(parents=True, exist_ok=True)
    kernel, initrd = directory / "kernel", directory / "initrd"
    kernel.write_bytes(os.urandom(_KERNEL_MB * 1_000_000))
    initrd.write_bytes(os.urandom(_INITRD_MB * 1_000_000))
    fetched = sorted((ROOT / ".cache" / "firmware").glob("*.fd"))
    firmware = fetched[0] if fetched else directory / "firmware"
    if not fetched:
        firmware.write_bytes(tiny_firmware())
    return LocalImage(kernel=kernel, initrd=initrd, root_disk=kernel, firmware=firmware)


async def lag_figures(place: Place, show: Show, rounds: int, name: str) -> list[Figure]:
    """The worst lag of the daemon's loop in every launch, and in every stop.

    Beside it, in a process that does nothing, the worst of the machine itself at that moment.
    """
    ours, idle = place.state / "lag", place.state / "lag-idle"
    launches: list[tuple[float, float]] = []
    stops: list[tuple[float, float]] = []
    update = {"dwell_s": 0.2, "soak_s": 1, "drain_s": 1, "stop_grace_s": 5}
    async with running(place, lag=ours, update=update) as daemon, _noise(idle) as noise:
        probes = ((daemon.pid, ours), (noise, idle))
        for number in range(rounds + 1):
            await _worst(probes)
            await daemon.want("PUT", f"/v1/deployments/{name}", place.deployment(TAGS[0]))
            await daemon.finish(name)
            launched = await _worst(probes)
            await daemon.delete(name)
            stopped = await _worst(probes)
            if number:  # the first one fetches
                launches.append(launched)
                stops.append(stopped)
                show.line(
                    f"loop lag {number}: launch {launched[0]:.1f} ms (idle {launched[1]:.1f}), "
                    f"stop {stopped[0]:.1f} ms (idle {stopped[1]:.1f})"
                )
    return [_lag("a launch", launches), _lag("a stop", stops)]


def _lag(of: str, pairs: list[tuple[float, float]]) -> Figure:
    return Figure(
        f"worst loop lag in {of}",
        max(ours for ours, _ in pairs),
        "ms",
        baseline=max(idle for _, idle in pairs),
        baseline_is="of a loop that does nothing, at the same time",
        bound=Bound(20, of="excess"),
        note=f"{len(pairs)} times, median {median([ours for ours, _ in pairs]):.1f} ms",
    )


async def _worst(probes: tuple[tuple[int, Path], ...]) -> tuple[float, float]:
    """Of the daemon and of the idle one since they were asked last, in ms."""
    for pid, out in probes:
        worst_of(pid, out)
    found = [await _written(out) * 1000 for _, out in probes]
    return found[0], found[1]


async def _written(out: Path) -> float:
    deadline = time.monotonic() + 10
    while not out.exists():
        if time.monotonic() > deadline:
            raise BenchError(f"the probe does not write {out}")
        await asyncio.sleep(0.02)
    return float(out.read_text())


@asynccontextmanager
async def _noise(out: Path) -> AsyncIterator[int]:
    """A process with the probe and nothing else."""
    out.unlink(missing_ok=True)
    process = subprocess.Popen([sys.executable, "-m", "bench.watched", "-", str(out)], cwd=ROOT)
    try:
        await _written(out)  # from then on it hears signals
        yield process.pid
    finally:
        process.kill()
        await asyncio.to_thread(process.wait)
