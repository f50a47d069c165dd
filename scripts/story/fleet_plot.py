"""The story of two hosts and a coordinator: one with room for a second copy, one without.

The coordinator assumes nothing: it starts each update by what that host's report says it would be.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from functools import partial

import msgspec

from agent.model.event import Event
from agent.store.chain import verify_chain
from scripts.story.fleet import (
    Host,
    leave_fleet,
    make_hosts,
    restart_coordinator,
    start_coordinator,
)
from scripts.story.load import Load
from scripts.story.place import Place
from scripts.story.plot import NAME, vcpus_to_offer
from scripts.story.releases import make_releases
from scripts.story.stage import StoryError
from scripts.story.tell import Row, Teller
from tests.coordinator.rollout import Outcome, roll_out
from tests.coordinator.world import GENESIS, Coordinator

_LONG_S = 120
_SEE_S = 3


async def play_fleet(teller: Teller) -> int:
    """The whole of it. Exit code 1 if a request was lost where none may be, or a step failed."""
    started = time.monotonic()
    await make_releases(Place())
    await leave_fleet(teller)
    plot = FleetPlot(teller)
    failure = None
    try:
        await plot.enrol()
        await plot.deploy()
        await plot.update("v1.1.0")
        await plot.coordinator_dies("v1.0.0")
    except (StoryError, RuntimeError, TimeoutError, AssertionError) as error:
        failure = str(error) or type(error).__name__
    await plot.close()
    teller.table(plot.rows)
    teller.line(f"the whole story took {time.monotonic() - started:.0f} s")
    if failure:
        teller.console.print(f"\n[red]The story did not go as told: {failure}[/red]")
        return 1
    if any(row.bad for row in plot.rows):
        teller.console.print("\n[red]Requests were lost in a step that may lose none.[/red]")
        return 1
    plot.what_next()
    return 0


class FleetPlot:
    """One run. `rows` grows with every step."""

    def __init__(self, teller: Teller) -> None:
        self._tell = teller
        self._number = 0
        self._hosts: list[Host] = []
        self._loads: dict[str, Load] = {}
        self._coordinator: Coordinator | None = None
        self.rows: list[Row] = []

    def _head(self, title: str) -> None:
        self._number += 1
        self._tell.heading(self._number, title)

    def _say(self, host: str, text: str) -> None:
        self._tell.line(f"{host:<6} {text}")

    @property
    def coordinator(self) -> Coordinator:
        assert self._coordinator is not None
        return self._coordinator

    async def enrol(self) -> None:
        self._head("A coordinator, and two hosts that enrol with one-time tokens")
        self._hosts = make_hosts(self._tell)
        self._coordinator = start_coordinator()
        vcpus = vcpus_to_offer()
        for host in self._hosts:
            # without room: what is left is what one copy takes
            reserve = 0 if host.name == "roomy" else vcpus - 1
            host.join(self.coordinator, vcpus=vcpus, reserve_vcpus=reserve)
            host.agent.start()
        for host in self._hosts:
            await host.agent.ready()
            await self.coordinator.until(partial(self.coordinator.ledger.report, host.name))
            self._say(host.name, "enrolled, reports; its token is spent")

    async def deploy(self) -> None:
        self._head("The coordinator deploys hello v1.0.0 on both")
        for host in self._hosts:
            ports, at = host.place.ports(), host.network.theirs
            body = {
                "tag": "v1.0.0",
                "listen": f"{at}:{ports.https}",
                "publish": [{"listen": f"{at}:{ports.plain}", "guest_port": 8080}],
                "variables": {"COLOUR": "white"},
            }
            path = f"/v1/deployments/{NAME}"
            answer = await self.coordinator.insist(host.name, "PUT", path, body, key="deploy")
            if answer.status != 202:
                raise StoryError(f"{host.name}: {answer.body}")
        for host in self._hosts:
            await self.coordinator.ended(host.name, "v1.0.0", _LONG_S)
            ports = host.place.ports()
            load = Load(ports.https, ports.plain, 5.0, host.network.theirs)
            load.start()
            self._loads[host.name] = load
            self.rows.append(Row(f"{host.name}: deploy v1.0.0", "told by the coordinator"))
            self._say(host.name, "serves")

    async def update(self, tag: str) -> None:
        self._head(f"The coordinator updates both to {tag}, each by what its report says")
        names = [host.name for host in self._hosts]
        outcomes = await roll_out(self.coordinator, names, tag, self._say, _LONG_S)
        await asyncio.sleep(_SEE_S)
        for outcome in outcomes:
            await self._close_step(outcome, tag)
        strategies = {one.host: one.update["strategy"] for one in outcomes}
        if strategies != {"roomy": "blue_green", "full": "stop_then_start"}:
            raise StoryError(f"the strategies were {strategies}")

    async def _close_step(self, outcome: Outcome, tag: str) -> None:
        told, update = outcome.told["strategy"], outcome.update
        if (update["status"], update["strategy"]) != ("completed", told):
            raise StoryError(f"{outcome.host}: said {told}, was {update}")
        why = ", ".join(reason["code"] for reason in outcome.told["reasons"]) or "it has room"
        self.rows.append(
            Row(
                f"{outcome.host}: update to {tag}",
                f"said {told} ({why}), did so",
                await self._loads[outcome.host].step(),
                switch_s=self._switch_s(outcome),
                downtime_s=update["downtime_s"],
                may_refuse=told == "stop_then_start",
            )
        )

    def _switch_s(self, outcome: Outcome) -> float | None:
        """From the durable decision, as its event says it, to the data plane having taken it."""
        update = outcome.update
        for event in self.coordinator.ledger.events(outcome.host):
            if event["update"] == update["id"] and event["to"] == "ready/switch":
                took = _moment(update["switched_at"]) - _moment(event["at"])
                return took.total_seconds()
        return None

    async def coordinator_dies(self, tag: str) -> None:
        self._head("kill -9 of the coordinator; a host goes on without it, and nothing is lost")
        host = self._hosts[0]
        self.coordinator.kill()
        self._say("", "$ kill -9 of the coordinator")
        self._say(host.name, f"$ enclave-agent relaunch {NAME} --tag {tag} --wait")
        code, output = await host.agent.call("relaunch", NAME, "--tag", tag, "--wait")
        if code != 0:
            raise StoryError(f"exit {code}: {output}")
        restart_coordinator(self.coordinator)
        _, page = await host.agent.get("/v1/events?limit=1000")
        newest = page["events"][-1]["sequence"]
        ledger = self.coordinator.ledger
        await self.coordinator.until(lambda: ledger.newest_event(host.name) >= newest, _LONG_S)
        known = msgspec.convert(ledger.events(host.name), list[Event])
        if verify_chain(known, GENESIS) is not None:
            raise StoryError("the events that the coordinator has are no whole chain")
        self._say(host.name, f"all {len(known)} events are there, without a gap")
        tally = await self._loads[host.name].step()
        self.rows.append(
            Row(f"{host.name}: update to {tag}, alone", "nothing of it was lost", tally)
        )

    async def close(self) -> None:
        for load in self._loads.values():
            await load.stop()
        if self._coordinator is not None:
            self._coordinator.ledger.close()

    def what_next(self) -> None:
        lines = [
            f"  .venv/bin/enclave-agent --socket {host.place.socket} status"
            for host in self._hosts
        ]
        self._tell.console.print(
            "\nThe coordinator and both daemons stay up. Try next:",
            *lines,
            "  ./scripts/quickstart --exit     stop everything, remove the namespaces",
            sep="\n",
            soft_wrap=True,
        )


def _moment(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text)
