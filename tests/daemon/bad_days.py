"""One update in which a VM is killed, or its guest goes wrong, in a step that is held open for it.

The daemon is halted at the first moment of the step (`tests.fakes.halting_daemon`) or its guest
keeps it there (`tests.fakes.fake_vms.Guests`): nothing here depends on how fast anything is.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.fakes.daemon_process import Answer, Daemon, kill_all
from tests.fakes.fake_vms import Guests
from tests.fakes.host_truth import vms_in

HELLO = "/v1/deployments/hello"
OTHER = {"v1": "v2", "v2": "v1"}
BEFORE_READY = ("prepare", "launch", "boot", "verify")
SHORT_S, LONG_S = 0.05, 600
_HELD_BY = {
    **dict.fromkeys(("prepare", "boot", "teardown"), "booting"),
    **{"launch": "mute", "verify": "sick"},
}
_RELAUNCH = ("enclave", "running", "launching")
_POLL_S = 0.02
_LIMIT_S = 60


@dataclass(frozen=True)
class Case:
    """In that step, that happens to the VM of the old or the new version."""

    strategy: str
    step: str
    which: str
    what: str = "killed"

    def __str__(self) -> str:
        return f"{self.strategy}-{self.step}-{self.which}-{self.what}"


@dataclass(frozen=True)
class End:
    """What domain.md promises. `serves`: the old version, the new one, or None: it refuses.

    `relaunched`: whose VM is started again; `either`: whether it is need not be the same each
    time. `status`: the deployment's.
    """

    update: str
    step: str
    serves: str | None
    relaunched: str | None = None
    either: bool = False
    status: str = "running"
    code: str | None = None


async def serving(daemon: Daemon) -> str | None:
    """The version that answers through the data plane; None: it refuses."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", daemon.plain)
    except ConnectionRefusedError:
        return None
    try:
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        return str(json.loads((await reader.read()).partition(b"\r\n\r\n")[2])["version"])
    finally:
        writer.close()


async def until(holds: Callable[[], bool], what: str) -> None:
    async with asyncio.timeout(_LIMIT_S):
        while not holds():
            await asyncio.sleep(_POLL_S)
    assert holds(), what


class Stage:
    """A daemon that halts on order, guests that obey, and one deployment."""

    def __init__(self, daemon: Daemon, guests: Guests) -> None:
        self.daemon = daemon
        self.guests = guests
        self.old = self.new = ""
        self.spoilt = True
        self._times: dict[str, float] = {}
        self._old_id = ""
        self._old_pid = self._victim = self._read_to = 0
        self._connection: asyncio.StreamWriter | None = None

    async def have(self, dwell_s: float, soak_s: float) -> None:
        """These times, for which the daemon must start anew; its VMs go on."""
        wanted = {"dwell_s": dwell_s, "soak_s": soak_s}
        if self._times != wanted:
            self.daemon.stop()
            self.daemon.configure(update=wanted)
            await self.daemon.up()
            self._times = wanted

    async def _set_up(self, times: tuple[float, float]) -> None:
        """One that serves, and whose VMs have never been relaunched."""
        self._disconnect()
        for tag in OTHER:
            self.guests.release(tag)
        seen = await self.daemon.deployment()
        if seen is not None and (self.spoilt or not seen["enclaves"]):
            assert (await self.daemon.send("DELETE", HELLO)).status == 202
            await self.daemon.until(lambda d: d is None)
            seen = None
        if seen is None:
            dwell_s, soak_s = times
            await self.have(min(dwell_s, SHORT_S), soak_s)  # a first start is held, too
            assert (await self.daemon.deploy(tag="v1")).status == 202
            assert (await self.daemon.over())["status"] == "completed"
            seen = await self.daemon.deployment()
            assert seen is not None
        self.spoilt = True  # until a case has ended well
        self.old, self.new = seen["tag"], OTHER[seen["tag"]]
        ((self._old_id, self._old_pid),) = [(row["id"], row["pid"]) for row in seen["enclaves"]]
        while await self._events():
            pass

    # --- holding a step open -----------------------------------------------------------------

    def halt_at(self, step: str) -> None:
        (self.daemon.home / "orders").write_text(step)

    @property
    def halted(self) -> bool:
        """Whether every thread of the daemon stands still."""
        stat = Path(f"/proc/{self.daemon.pid}/stat").read_bytes()
        return stat[stat.rindex(b")") + 2 :][:1] == b"T"

    def go_on(self) -> None:
        os.kill(self.daemon.pid, signal.SIGCONT)

    async def _connect(self) -> None:
        """With a connection to the old version there is something to drain."""
        reader, self._connection = await asyncio.open_connection("127.0.0.1", self.daemon.plain)
        self._connection.write(b"GET / HTTP/1.1\r\n\r\n")
        await reader.readuntil(b"}")

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # --- what is there, and what befalls it ----------------------------------------------------

    def vms(self) -> dict[str, int]:
        """Pids of the old and of the new version's VM, of those that there are."""
        pids = [pid for pids in vms_in(self.daemon).values() for pid in pids]
        return {"old" if pid == self._old_pid else "new": pid for pid in pids}

    def _befalls(self, case: Case) -> None:
        self._victim = self.vms()[case.which]
        if case.what == "killed":
            kill_all({self._victim: ()})
        else:
            self.guests.order(self.new if case.which == "new" else self.old, case.what)

    async def back(self, tag: str) -> None:
        """Until that version serves, again or at last."""
        async with asyncio.timeout(_LIMIT_S):
            while True:
                try:
                    if await serving(self.daemon) == tag:
                        return
                except (ConnectionError, ValueError):
                    pass
                await asyncio.sleep(_POLL_S)

    # --- the run -------------------------------------------------------------------------------

    async def run(self, case: Case, there: set[str], times: tuple[float, float]) -> dict[str, Any]:
        """The update, when it is over.

        `there`: whose VMs must exist in that step. `times`: dwell and soak.
        """
        await self._set_up(times)
        await self.have(*times)
        held = _HELD_BY.get(case.step)
        if held and not (case.strategy == "stop_then_start" and case.which == "old"):
            self.guests.order(self.new, held)
        if case.step == "drain":
            await self._connect()
        asked = await self._reach(case.step, case.strategy)
        assert set(self.vms()) == there
        self._befalls(case)
        if self.halted:
            self.go_on()
        assert (await asked).status == 202
        await self._go_on(case)
        return await self.daemon.over()

    async def _reach(self, step: str, strategy: str) -> asyncio.Task[Answer]:
        """Into the step, and held there. The request: a daemon that stands still answers none."""
        if step not in ("launch", "revert", "teardown"):
            self.halt_at(step)
        options = {"tag": self.new, "strategy": strategy, "staging": step == "accept"}
        asked = asyncio.create_task(self.daemon.update(**options))
        if step == "launch":  # whose first moment has no VM yet
            await until(lambda: "new" in self.vms(), "its VM is started")
            return asked
        if step == "revert":
            await asked
            await self.daemon.step("soak")
            self.halt_at(step)
            self.guests.order(self.new, "sick")
        elif step == "teardown":
            await asked
            await self.daemon.step("boot")
            self.halt_at(step)
            cancel = f"{HELLO}/updates/current/cancel"
            asked = asyncio.create_task(self.daemon.send("POST", cancel))
        await until(lambda: self.halted, "the daemon comes to the step")
        return asked

    async def _go_on(self, case: Case) -> None:
        """What the step waits for, once what befell it had its effect."""
        blue = case.strategy == "blue_green"
        if case.which == "old" and (case.step == "accept" or (blue and case.step in BEFORE_READY)):
            await self.back(self.old)
        if case.which == "new" and case.step == "drain":
            await self.daemon.until(lambda d: d is not None and self._noticed(d, case.what))
        self._disconnect()
        if case.what == "killed":
            self.guests.release(self.new)
        if case.step == "accept" and case.which == "old":
            await self._accept()

    def _noticed(self, seen: dict[str, Any], what: str) -> bool:
        """The new version is known to be sick, or runs anew, while the old one still drains."""
        assert seen["update"]["finished_at"] is None
        (row,) = [row for row in seen["enclaves"] if row["id"] != self._old_id]
        if what in ("killed", "reset"):
            return bool(row["healthy"] and row["pid"] not in (None, self._victim))
        return row["healthy"] is False

    async def clean_run(self, strategy: str) -> set[str]:
        """The steps of an update that waits for its accept and has something to drain."""
        times = SHORT_S, SHORT_S
        await self._set_up(times)
        await self.have(*times)
        await self._connect()
        options = {"tag": self.new, "strategy": strategy, "staging": True}
        assert (await self.daemon.update(**options)).status == 202
        await self.daemon.step("accept")
        await self._accept()
        if strategy == "blue_green":
            await self.daemon.step("drain")
            self._disconnect()
        update = await self.daemon.over()
        assert update["status"] == "completed", update
        events = await self._events()
        self.spoilt = False
        return {event["to"].partition("/")[2] for event in events if event["kind"] == "update"} - {
            ""
        }

    async def _accept(self) -> None:
        answer = await self.daemon.send("POST", f"{HELLO}/updates/current/accept")
        assert answer.status == 202, answer

    async def until_relaunched(self, which: str | None) -> set[str]:
        """Whose VM was started again since the case began, that one at last."""
        found: set[str] = set()
        async with asyncio.timeout(_LIMIT_S):
            while True:
                found |= {
                    "old" if event["enclave"] == self._old_id else "new"
                    for event in await self._events()
                    if (event["kind"], event["from"], event["to"]) == _RELAUNCH
                }
                if which is None or which in found:
                    return found
                await asyncio.sleep(_POLL_S)

    async def _events(self) -> list[dict[str, Any]]:
        """Those that were not read yet."""
        page = (await self.daemon.get(f"/v1/events?after={self._read_to}")).body
        self._read_to = page["next"]
        return list(page["events"])
