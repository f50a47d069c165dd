"""The story about GPUs: one beside another, then a whole board, on a host that is simulated."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from scripts.story.place import LOOK_EVERY_S, Place
from scripts.story.releases import BOARD, GPUS
from scripts.story.stage import Stage, StoryError
from scripts.story.tell import Row, Teller
from simulator.machine import SimulatedHostError
from simulator.profiles import Profile

SIMULATED = "SIMULATED GPUs: stand-ins, which compute nothing"
_CLEAN_S = 60


def bring_up(place: Place, profile: Profile, teller: Teller) -> None:
    """Have the simulated host there. One that is there stays as it is: VMs may run on it."""
    machine = place.machine
    assert machine is not None
    try:
        if machine.profile is None:
            machine.make(profile)
        machine.start()
    except SimulatedHostError as error:
        raise SystemExit(f"the simulated host: {error}") from error
    teller.line(f"{SIMULATED}. The host is {machine.directory}, its profile {profile.name}")
    teller.line(f"QEMU is {machine.qemu}: a pci-testdev for each GPU and NVSwitch")


class GpuPlot(Stage):
    """One run. On a host without a board of eight it ends with what is refused, and why."""

    async def tell(self) -> None:
        """All of it."""
        for self.name in (BOARD, *(name for name in GPUS if name != BOARD)):
            await self.forget()
        await self._free_again()  # what an earlier run left is cleaned first
        gpus = await self._see()
        if not gpus:
            await self._refused("Deploy hello, which needs a GPU", self.name)
            return
        await self._deploy("Deploy hello, which needs one GPU", "v1.0.0")
        await self._stand_ins(GPUS[self.name])
        self._load.start()
        await self._blue_green()
        await self._refused("Deploy board, which needs eight GPUs", BOARD)
        if gpus == GPUS[BOARD]:
            await self._board()

    async def _see(self) -> int:
        self._head("What this host has", "gpus")
        await self._show("gpus")
        _, status = await self._agent.get("/status")
        return int(status["gpus"]["total"])

    async def _show(self, *words: str) -> None:
        for line in (await self._do(*words)).splitlines():
            self._tell.console.print(f"   {line}", markup=False, soft_wrap=True)

    async def _blue_green(self) -> None:
        words = ("relaunch", self.name, "--tag", "v1.1.0")
        self._head("Update hello under traffic: another GPU is free", *words)
        await self._do(*words)
        update = await self._follow()
        self._expect(update, "completed", "blue_green")
        await self._close("one GPU, to v1.1.0", "booted on another GPU, switched", update)
        seconds = await self._free_again()
        self._tell.line(f"the old one's GPU: reset, requalified and free after {seconds:.1f} s")
        await self._show("gpus")

    async def _free_again(self) -> float:
        """Seconds until no GPU is being cleaned."""
        began = time.monotonic()
        await asyncio.sleep(2 * LOOK_EVERY_S)  # what is shown may be as old as that
        while time.monotonic() - began < _CLEAN_S:
            _, status = await self._agent.get("/status")
            counts = status["gpus"]
            if counts["free"] + counts["in_use"] == counts["total"]:
                return time.monotonic() - began
            await asyncio.sleep(0.1)
        raise StoryError(f"GPUs did not come free: {counts}")

    async def _refused(self, title: str, name: str) -> None:
        ports = self._place.ports()
        listen = f"127.0.0.1:{ports.https}"
        if name != self.name:
            listen = f"127.0.0.1:{ports.https + 1}"
        release = ("--tag", "v1.0.0", "--variable", "COLOUR=white")
        words = ("deploy", name, *release, "--listen", listen)
        self._head(title, *words)
        why = await self._do(*words, expect=3)
        for line in why.splitlines():
            self._tell.line(f"  {line}")
        self.rows.append(Row(f"deploy {name}", why.splitlines()[0].strip()))

    async def _board(self) -> None:
        """With hello gone all eight are free; then there is never room for a second copy."""
        await self._load.step()
        await self.forget()
        await self._free_again()
        await self._load.step()
        self.name = BOARD
        await self._deploy("Delete hello; deploy board on all eight GPUs", "v1.0.0")
        await self._stand_ins(GPUS[BOARD])
        await self._load.step()
        self._head("Update board: no room for a second copy", "plan", BOARD, "--tag", "v1.1.0")
        await self._show("plan", BOARD, "--tag", "v1.1.0")
        self._tell.line(f"$ enclave-agent relaunch {BOARD} --tag v1.1.0")
        await self._do("relaunch", BOARD, "--tag", "v1.1.0")
        update = await self._follow(timeout_s=180)
        self._expect(update, "completed", "stop_then_start")
        await self._close(
            "eight GPUs, to v1.1.0", "stopped, requalified, started", update, may_refuse=True
        )
        await self._show("gpus")

    async def _stand_ins(self, gpus: int) -> None:
        """What QEMU was started with, told by the kernel."""
        deployment = await self._agent.deployment(self.name)
        assert deployment is not None
        (enclave,) = deployment["enclaves"]
        argv = Path(f"/proc/{enclave['pid']}/cmdline").read_bytes()
        count, switches = argv.count(b"pci-testdev"), await self._switches(enclave["id"])
        if count != gpus + switches or len(enclave["gpus"]) != gpus:
            raise StoryError(f"its VM has {count} stand-ins for {gpus} GPUs, {switches} switches")
        also = f" and {switches} NVSwitches" if switches else ""
        self._tell.line(f"in its VM: {', '.join(enclave['gpus'])}{also}. {SIMULATED}")

    async def _switches(self, enclave: str) -> int:
        _, inventory = await self._agent.get("/v1/inventory")
        return sum(switch["owner"] == enclave for switch in inventory["switches"])
