"""The daemon with many enclaves beside itself with two: VMs that are none, all else real."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from bench.figures import median
from bench.processes import usage
from bench.show import Show
from tests.fakes.daemon_process import Daemon, free_ports, place
from tests.fakes.fake_vms import fake_releases, install, settings
from tests.fakes.guest_releases import config_of

FEW, MANY = 2, 64
_MEMORY_MIB = 64
_ASKED = 20
_SETTLE_S = 5.0
_STARTS = 3


async def measure_enclaves(directory: Path, seconds: float, show: Show) -> dict[str, float]:
    """By name and number: READY in seconds, `/status` in ms, CPU of each enclave in per cent."""
    source = fake_releases(directory, {"v1": config_of(memory_mib=_MEMORY_MIB)})
    options = settings(
        install(directory),
        host={"vcpus": 4 * MANY},
        probes={"interval_s": 5, "timeout_s": 3, "outside": "never"},
    )
    daemon = Daemon(place("eab-"), source, settings=options)
    found: dict[str, float] = {}
    try:
        await daemon.up()
        there = 0
        for number in (FEW, MANY):
            for one in range(there, number):
                await _deploy(daemon, f"d{one}")
            there = number
            found |= await _figures(daemon, number, seconds)
            show.line(f"{number} enclaves: {found}")
    finally:
        await daemon.leave()
    return found


async def _deploy(daemon: Daemon, name: str) -> None:
    https, plain = free_ports(2)
    body = {
        "tag": "v1",
        "repo": "hello",
        "listen": f"127.0.0.1:{https}",
        "publish": [{"listen": f"127.0.0.1:{plain}", "guest_port": 8080}],
    }
    answer = await daemon.send("PUT", f"/v1/deployments/{name}", body)
    assert answer.status == 202, answer
    await daemon.until(lambda d: d is not None and d["status"] == "running", name)


async def _figures(daemon: Daemon, number: int, seconds: float) -> dict[str, float]:
    ready = []
    for _ in range(_STARTS):
        daemon.kill()
        began = time.monotonic()
        await daemon.up()
        ready.append(time.monotonic() - began)
    await asyncio.sleep(_SETTLE_S)
    took = []
    for _ in range(_ASKED):
        began = time.perf_counter()
        await daemon.get("/status")
        took.append((time.perf_counter() - began) * 1e3)
    before = usage(daemon.pid)
    await asyncio.sleep(seconds)
    after = usage(daemon.pid)
    cpu = after.cores_since(before) * 100
    return {
        f"READY {number}": median(ready),
        f"/status {number}": median(took),
        f"CPU at rest, each {number}": cpu / number,
    }
