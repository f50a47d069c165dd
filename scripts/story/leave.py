"""`--exit`: everything of the quickstart stops; links, ruleset and sysctls are as before."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time

from agent.config_file import load_config
from agent.daemon.parts import restore_host
from agent.errors import AgentError, describe
from scripts.story.agent_process import AgentProcess
from scripts.story.place import Place
from scripts.story.tell import Teller


async def leave(place: Place, teller: Teller) -> int:
    """Stop the enclaves through the daemon, then the daemon, then take back what it made."""
    if not place.config.exists():
        teller.line("nothing to stop: no quickstart was run here, or it was left already")
        return 0
    await stop_all(AgentProcess(place), teller)
    if code := await restore(place, teller):
        return code
    for machine in place.machines():
        machine.stop()
        await asyncio.to_thread(shutil.rmtree, machine.directory)
        teller.line("the simulated host: gone")
    place.config.unlink()  # of what is there no more
    return 0


async def restore(place: Place, teller: Teller) -> int:
    """What an agent made on this host; it has ended."""
    config = load_config(place.config, {})
    try:
        await restore_host(config)
    except AgentError as error:
        teller.line(f"could not put everything back: {describe(error)}")
        return 1
    await asyncio.to_thread(shutil.rmtree, place.run, ignore_errors=True)
    teller.line("links, ruleset and sysctls: as before")
    return 0


async def stop_all(agent: AgentProcess, teller: Teller) -> None:
    """The enclaves of a daemon, and then itself."""
    if agent.pid() is None:
        agent.start()  # only the agent knows its VMs: it adopts and stops them
    await agent.ready()
    _, status = await agent.get("/status")
    for deployment in status["deployments"]:
        await _stop(agent, deployment["name"])
        teller.line(f"{deployment['name']}: stopped")
    agent.stop()
    teller.line("the daemon: stopped")


async def _stop(agent: AgentProcess, name: str) -> None:
    await agent.call("update", "cancel", name)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        code, _ = await agent.call("stop", name)
        deployment = await agent.deployment(name)
        if code == 0 and (deployment is None or not deployment["enclaves"]):
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.sleep(0.2)
    raise SystemExit(f"{name} did not stop")
