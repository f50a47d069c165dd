"""The steps. Each drives the real command line and watches what comes of it."""

from __future__ import annotations

import asyncio
import os
import signal
import time

from scripts.story.place import REPO
from scripts.story.releases import ALTERED, put_swap
from scripts.story.stage import OVER, Stage, StoryError, moment

NAME = REPO


class Plot(Stage):
    """One run of the story."""

    async def reset(self) -> None:
        """A second run: forget only the story's own deployment."""
        if await self._agent.deployment(self.name) is not None:
            self._tell.line("removing the deployment of an earlier run")
            await self.forget()

    async def deploy(self) -> None:
        await self._deploy("Deploy hello v1.0.0", "v1.0.0")
        self._load.start()

    async def blue_green(self) -> None:
        self._head("Update to v1.1.0 under traffic", "relaunch", self.name, "--tag", "v1.1.0")
        await self._do("relaunch", self.name, "--tag", "v1.1.0")
        update = await self._follow()
        self._expect(update, "completed", "blue_green")
        ready = moment(update["ready_at"]) - moment(update["created_at"])
        self._ready_after_s = ready.total_seconds()
        await self._close("update to v1.1.0", "switched; old one drained and gone", update)

    async def broken(self) -> None:
        self._head("Update to v1.2.0, broken on purpose", "relaunch", self.name, "--tag", "v1.2.0")
        started = time.monotonic()
        await self._do("relaunch", self.name, "--tag", "v1.2.0")
        update = await self._follow()
        took = time.monotonic() - started
        self._expect(update, "failed")
        most = 10 + 2 * self._ready_after_s  # as fast or slow as this machine boots a good one
        if took > most:
            raise StoryError(f"it took {took:.1f} s to fail, not at most {most:.1f}")
        self._tell.line(f"why: {update['error']['code']}: {update['error']['detail'][:160]}")
        await self._close(
            "update to v1.2.0 (broken)", f"failed in {took:.0f} s; v1.1.0 serves on", update
        )

    async def cancel(self) -> None:
        self._head("Cancel an update half-way", "relaunch", self.name, "--tag", "v1.3.0")
        await self._do("relaunch", self.name, "--tag", "v1.3.0")
        await self._follow(until={"started", *OVER})
        await asyncio.sleep(1.5)
        self._tell.line(f"$ enclave-agent update cancel {self.name}")
        await self._do("update", "cancel", self.name)
        update = await self._follow()
        self._expect(update, "cancelled")
        await self._close("update to v1.3.0, cancelled", "only the new one torn down", update)

    async def staged(self) -> None:
        self._head("A staged update", "relaunch", self.name, "--tag", "v1.3.0", "--staging")
        await self._do("relaunch", self.name, "--tag", "v1.3.0", "--staging")
        await self._follow(until={"ready", *OVER})
        self._tell.line("ready: it waits for accept, v1.1.0 serves on")
        self._tell.line(f"$ enclave-agent update accept {self.name}")
        await self._do("update", "accept", self.name)
        update = await self._follow()
        self._expect(update, "completed", "blue_green")
        await self._close("staged update to v1.3.0", "waited, accepted, switched", update)

    async def rollback(self) -> None:
        self._head("Roll back to v1.0.0", "rollback", self.name, "--to", "v1.0.0")
        await self._do("rollback", self.name, "--to", "v1.0.0")
        update = await self._follow()
        self._expect(update, "completed", "blue_green")
        await self._close("rollback to v1.0.0", "an ordinary update, backwards", update)

    async def variable(self) -> None:
        words = ("relaunch", self.name, "--variable", "COLOUR=green")
        self._head("Redeploy with another variable", *words)
        await self._do(*words)
        update = await self._follow()
        self._expect(update, "completed", "blue_green")
        await self._close("redeploy, COLOUR=green", "same tag, new revision", update)

    async def crash(self) -> None:
        self._head("kill -9 of the daemon in the middle of an update")
        await self._do("relaunch", self.name, "--tag", "v1.1.0")
        await self._follow(until={"started", *OVER})
        pid = self._agent.pid()
        self._tell.line(f"$ kill -9 {pid}")
        self._agent.stop(signal.SIGKILL)
        await asyncio.sleep(1)
        self._agent.start()
        self._tell.line(f"restarted; ready after {await self._agent.ready():.2f} s")
        update = await self._follow()
        self._expect(update, "completed", "blue_green")
        await self._close("kill -9 during an update", "adopted, went on, same end", update)

    async def altered(self) -> None:
        self._head(
            "An image that was altered after its release", "relaunch", self.name, "--tag", ALTERED
        )
        await self._do("relaunch", self.name, "--tag", ALTERED)
        update = await self._follow()
        self._expect(update, "failed")
        if update["step"] != "prepare":
            raise StoryError(f"it failed only in {update['step']}, not before anything was booted")
        self._tell.line(f"why: {update['error']['code']}: {update['error']['detail'][:160]}")
        await self._close("an altered image", "refused before boot; v1.1.0 serves on", update)

    async def swapped(self, *, vcpus: int) -> None:
        """Needs evidence: nothing else shows it."""
        self._head("An initrd swapped past that check, by whoever starts QEMU")
        self._agent.stop()
        put_swap(self._place)
        self._place.write_config(vcpus=vcpus, swapping=True)
        self._agent.start()
        await self._agent.ready()
        await self._do("relaunch", self.name, "--tag", "v1.0.0")
        update = await self._follow()
        self._expect(update, "failed")
        self._tell.line(f"why: {update['error']['code']}: {update['error']['detail'][:160]}")
        if "snp_measurement" not in update["error"]["detail"]:
            raise StoryError("it did not fail by its measurement")
        await self._close("a swapped initrd", "booted, not believed; v1.1.0 serves on", update)
        self._agent.stop()
        self._place.write_config(vcpus=vcpus)
        self._agent.start()
        await self._agent.ready()

    async def no_room(self, *, vcpus: int) -> None:
        self._head("A host whose reserve leaves no room for a second copy")
        self._agent.stop()
        self._place.write_config(vcpus=vcpus, reserve_vcpus=vcpus - 1)
        self._agent.start()
        await self._agent.ready()
        await self._load.step()
        code, output = await self._agent.call("plan", self.name, "--tag", "v1.0.0")
        self._tell.line(f"$ enclave-agent plan {self.name} --tag v1.0.0 (exit {code})")
        for line in output.splitlines():
            self._tell.line(f"  {line}")
        await self._do("relaunch", self.name, "--tag", "v1.0.0")
        update = await self._follow()
        self._expect(update, "completed", "stop_then_start")
        await self._close(
            "stop-then-start to v1.0.0", "refused while down", update, may_refuse=True
        )

    async def room_again(self, *, vcpus: int) -> None:
        """Leave the daemon with room for a second copy, for whoever plays on."""
        self._agent.stop()
        self._place.write_config(vcpus=vcpus)
        self._agent.start()
        await self._agent.ready()


def vcpus_to_offer() -> int:
    """Two copies of one vCPU each and one to spare, whatever this machine has."""
    return max(3, os.cpu_count() or 1)
