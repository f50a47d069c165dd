"""What every step of a story does: type a command, watch what comes of it, keep a row of it."""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from typing import Any

from scripts.story.agent_process import AgentProcess
from scripts.story.load import Load
from scripts.story.place import Place
from scripts.story.tell import Row, Teller

OVER = {"completed", "failed", "cancelled"}


class StoryError(Exception):
    """The story did not go as told."""


class Stage:
    """One run of a story. `name`: the deployment it is about now. `rows` grows with every step."""

    def __init__(
        self, name: str, place: Place, agent: AgentProcess, load: Load, teller: Teller
    ) -> None:
        self.name = name
        self._place = place
        self._agent = agent
        self._load = load
        self._tell = teller
        self._number = 0
        self._ready_after_s = 0.0  # a good version, on this machine
        self.rows: list[Row] = []

    def _head(self, title: str, *words: str) -> None:
        self._number += 1
        command = f"enclave-agent {' '.join(words)}" if words else None
        self._tell.heading(self._number, title, command)

    async def _do(self, *words: str, expect: int = 0) -> str:
        code, output = await self._agent.call(*words)
        if code != expect:
            raise StoryError(f"enclave-agent {' '.join(words)}: exit {code}: {output}")
        return output

    async def _deploy(self, title: str, tag: str) -> None:
        """On the story's own ports."""
        ports = self._place.ports()
        words = (
            *("deploy", self.name, "--tag", tag, "--listen", f"127.0.0.1:{ports.https}"),
            *("--publish", f"127.0.0.1:{ports.plain}:8080", "--variable", "COLOUR=white"),
        )
        self._head(title, *words)
        await self._do(*words)
        self._expect(await self._follow(), "completed")
        verdict = await self._verdict()
        self.rows.append(
            Row(f"deploy {self.name} {tag}", "booted, healthy, serving", verdict=verdict)
        )

    async def _update(self) -> dict[str, Any]:
        deployment = await self._agent.deployment(self.name)
        if deployment is None or deployment["update"] is None:
            raise StoryError("the deployment has no update")
        update: dict[str, Any] = deployment["update"]
        return update

    async def _follow(self, *, until: set[str] = OVER, timeout_s: float = 90) -> dict[str, Any]:
        """Print every change of status and step until one of these statuses."""
        said, deadline = "", time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            update = await self._update()
            now = f"{update['status']:<9} step {update['step']}"
            if now != said:
                said = now
                self._tell.line(f"{update['tag']}  {now}")
            if update["status"] in until - OVER or update["finished_at"] is not None:
                return update
            await asyncio.sleep(0.1)
        raise StoryError(f"the update is still {said} after {timeout_s} s")

    async def _close(
        self, step: str, happened: str, update: dict[str, Any] | None, **more: Any
    ) -> None:
        tally = await self._load.step()
        row = Row(step, happened, tally, verdict=await self._verdict(), **more)
        if update is not None:
            row.switch_s = await self._switch_s(update)
            row.downtime_s = update["downtime_s"]
        self.rows.append(row)
        versions = ", ".join(f"{n} × {v}" for v, n in sorted(tally.versions.items()))
        self._tell.line(
            f"requests: {tally.sent} sent, {tally.failed} failed, {tally.reset} reset ({versions})"
        )

    async def _switch_s(self, update: dict[str, Any]) -> float | None:
        """From the durable decision to the data plane having taken it."""
        if update["switched_at"] is None:
            return None
        after, decided = 0, None
        while decided is None:
            _, page = await self._agent.get(f"/v1/events?after={after}")
            events = page["events"] if isinstance(page, dict) else page
            if not events:
                return None
            after = events[-1]["sequence"]
            for event in events:
                if event["update"] == update["id"] and event["to"] == "ready/switch":
                    decided = event["at"]
        return (moment(update["switched_at"]) - moment(decided)).total_seconds()

    async def _verdict(self) -> str | None:
        """Of the enclave that serves, as it is now."""
        deployment = await self._agent.deployment(self.name)
        if deployment is None:
            return None
        for enclave in deployment["enclaves"]:
            if enclave["slot"] == deployment["active_slot"]:
                return {True: "attested", False: "NOT ATTESTED", None: "-"}[enclave["attested"]]
        return None

    def _expect(self, update: dict[str, Any], status: str, strategy: str | None = None) -> None:
        if update["status"] != status or strategy not in (None, update["strategy"]):
            raise StoryError(
                f"expected {strategy or ''} {status}, got "
                f"{update['strategy']} {update['status']}: {update['error']}"
            )

    async def forget(self) -> None:
        """Have the deployment deleted, if there is one."""
        if await self._agent.deployment(self.name) is None:
            return
        await self._agent.call("update", "cancel", self.name)
        for _ in range(300):
            code, _ = await self._agent.call("delete", self.name)
            if code in (0, 4):
                break
            await asyncio.sleep(0.2)
        while await self._agent.deployment(self.name) is not None:
            await asyncio.sleep(0.1)


def moment(text: str) -> dt.datetime:
    """A moment as the API tells it."""
    return dt.datetime.fromisoformat(text)
