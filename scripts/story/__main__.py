"""`scripts/quickstart`, once the environment and the guest image are there."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time

from scripts.story.agent_process import AgentProcess
from scripts.story.fleet import leave_fleet
from scripts.story.fleet_plot import play_fleet
from scripts.story.gpu_plot import GpuPlot, bring_up
from scripts.story.leave import leave
from scripts.story.load import Load
from scripts.story.place import Place
from scripts.story.plot import NAME, Plot, vcpus_to_offer
from scripts.story.releases import make_gpu_releases, make_releases
from scripts.story.stage import Stage, StoryError
from scripts.story.tell import Teller
from simulator.profiles import PROFILES


async def play(place: Place, teller: Teller, gpus: str | None) -> int:
    """The whole story. Exit code 1 if a request was lost where none may be, or a step failed."""
    started = time.monotonic()
    if place.is_anothers():
        teller.line("leaving what an earlier run made on another host")
        if await leave(place, teller):
            return 1
    vcpus = vcpus_to_offer()
    agent = AgentProcess(place)
    agent.stop()  # its configuration may be another run's
    if gpus:
        await make_gpu_releases(place)
        bring_up(place, PROFILES[gpus], teller)
    else:
        await make_releases(place)
    place.write_config(vcpus=vcpus)
    agent.start()
    await _introduce(place, agent, teller)
    load = Load(place.ports().https, place.ports().plain)
    plot: Plot | GpuPlot
    if gpus:
        plot = GpuPlot(NAME, place, agent, load, teller)
        telling = plot.tell()
    else:
        plot = Plot(NAME, place, agent, load, teller)
        telling = _tell(plot, place, vcpus)
    failure = None
    try:
        await telling
    except StoryError as error:
        failure = str(error)
    await load.stop()
    code = _end(plot, teller, failure, time.monotonic() - started)
    if code == 0:
        _what_next(place, plot.name, teller)
    return code


async def _introduce(place: Place, agent: AgentProcess, teller: Teller) -> None:
    ports, seconds = place.ports(), await agent.ready()
    _, status = await agent.get("/status")
    host = status["host"]
    teller.line(f"the daemon is ready after {seconds:.2f} s; log: {place.log}")
    for what in ("tee", "network", "traffic", "supervisor"):
        teller.line(f"{what}: {host[what]}")
    if host["simulated"]:
        teller.line("SIMULATED — NOT CONFIDENTIAL: the agent plays the guests' secure processor")
    teller.line(f"hello will listen on 127.0.0.1:{ports.https} (TLS), :{ports.plain} (plain)")


async def _tell(plot: Plot, place: Place, vcpus: int) -> None:
    await plot.reset()
    await plot.deploy()
    for step in (
        plot.blue_green,
        plot.broken,
        plot.cancel,
        plot.staged,
        plot.rollback,
        plot.variable,
        plot.crash,
    ):
        await step()
    await plot.altered()
    if place.attested:
        await plot.swapped(vcpus=vcpus)
    await plot.no_room(vcpus=vcpus)
    await plot.room_again(vcpus=vcpus)


def _end(stage: Stage, teller: Teller, failure: str | None, seconds: float) -> int:
    teller.table(stage.rows)
    teller.line(f"the whole story took {seconds:.0f} s")
    if failure:
        teller.console.print(f"\n[red]The story did not go as told: {failure}[/red]")
        return 1
    if any(row.bad for row in stage.rows):
        teller.console.print("\n[red]Requests were lost in a step that may lose none.[/red]")
        return 1
    return 0


def _what_next(place: Place, name: str, teller: Teller) -> None:
    ports = place.ports()
    teller.console.print(
        "\nThe daemon stays up. Try next:\n"
        f"  export ENCLAVE_AGENT_SOCKET={place.socket}\n"
        "  .venv/bin/enclave-agent status\n"
        f"  .venv/bin/enclave-agent status {name}\n"
        f"  curl -sk https://127.0.0.1:{ports.https}/\n"
        f"  .venv/bin/enclave-agent relaunch {name} --tag v1.1.0 --wait\n"
        f"  .venv/bin/enclave-agent rollback {name} --wait\n"
        f"  .venv/bin/enclave-agent logs {name}\n"
        "  .venv/bin/enclave-agent events\n"
        f"  curl -s http://127.0.0.1:{ports.status}/metrics\n"
        "  ./scripts/quickstart --exit     stop everything and restore links, ruleset and sysctls",
        soft_wrap=True,
    )


def main() -> int:
    """`--exit` leaves; otherwise a story is played: of one host, unless another is asked for."""
    parser = argparse.ArgumentParser(prog="scripts/quickstart", description=__doc__)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--exit", action="store_true", help="stop and take back everything")
    what.add_argument("--coordinator", action="store_true", help="two hosts and their coordinator")
    what.add_argument("--gpus", choices=PROFILES, help="the story about GPUs, on a simulated host")
    given = parser.parse_args()
    place, teller = Place(gpus=given.gpus), Teller()
    if given.exit:
        return asyncio.run(_leave_all(place, teller))
    if given.coordinator:
        return asyncio.run(play_fleet(teller))
    return asyncio.run(play(place, teller, given.gpus))


async def _leave_all(place: Place, teller: Teller) -> int:
    await leave_fleet(teller)
    return await leave(place, teller)


sys.exit(main())
