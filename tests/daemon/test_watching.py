"""What a person sees who waits for an update of the real daemon, or watches it restart."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.daemon.conftest import running
from tests.fakes.daemon_process import AGENT, CHECKOUT, Daemon
from tests.fakes.fake_vms import fake_releases, install, settings
from tests.fakes.guest_releases import config_of

pytestmark = [pytest.mark.slow]

UPDATE = {"dwell_s": 1, "soak_s": 0.1, "drain_s": 1, "stop_grace_s": 1}  # long enough to be seen
SLOW = {"GUEST_SLOW_STAGE": "models:2"}
CONFIGS = {"v1": config_of(SLOW), "v2": config_of(SLOW)}


@pytest_asyncio.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    """With v1 deployed, whose guests take two seconds to boot."""
    source = fake_releases(tmp_path, CONFIGS)
    async with running(source, settings=settings(install(tmp_path), update=UPDATE)) as daemon:
        assert (await daemon.deploy(tag="v1")).status == 202
        assert (await daemon.over())["status"] == "completed"
        yield daemon


class Watch:
    """A command that goes on, read as it prints."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.seen = ""

    async def until(self, *words: str) -> None:
        """All of these, in this order, after what was seen before."""
        assert self._process.stdout is not None
        for word in words:
            while word not in self.seen:
                piece = await asyncio.wait_for(self._process.stdout.read(65536), 20)
                assert piece, f"ended before {word}: {self.seen}"
                self.seen += piece.decode()
            self.seen = self.seen.split(word, 1)[1]

    async def complaint(self) -> str:
        assert self._process.stderr is not None
        return (await asyncio.wait_for(self._process.stderr.readline(), 20)).decode()


@contextlib.asynccontextmanager
async def watching(daemon: Daemon, *words: str) -> AsyncIterator[Watch]:
    process = await asyncio.create_subprocess_exec(
        *AGENT,
        *("--socket", str(daemon.socket), *words),
        cwd=CHECKOUT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=1 << 24,
    )
    try:
        yield Watch(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)
        await process.wait()


async def test_a_wait_names_steps_stages_probes_and_what_the_last_boot_took(
    daemon: Daemon,
) -> None:
    before = (await daemon.deployment() or {})["update"]
    code, out, err = await daemon.cli("relaunch", "hello", "--tag", "v2", "--wait")
    assert (code, err) == (0, "")
    boots = re.findall(r"started, boot; (\d) of \d stages.* s of about ([\d.]+) s", out)
    assert boots, out
    (usual,) = {float(said) for _, said in boots}
    assert usual == pytest.approx(_booted_s(before), abs=2.0)
    assert 2.0 <= usual <= 6.0
    assert re.search(r"started, boot; .*\d/\d probes", out), out
    for words in ("pending, ", "ready in about", "started, verify; ", "hello is on v2"):
        assert words in out, out


def _booted_s(update: dict[str, object]) -> float:
    """From the VM's start to Ready, less the dwell."""
    moments = [dt.datetime.fromisoformat(str(update[f"{n}_at"])) for n in ("started", "ready")]
    return (moments[1] - moments[0]).total_seconds() - UPDATE["dwell_s"]


@pytest.mark.parametrize(
    ("more", "stages"),
    [
        ((), ("models pending",)),
        (("-o", "json"), ('"name":"models","status":"pending"',)),
    ],
)
async def test_a_watch_shows_steps_and_stages_and_waits_for_an_agent_that_restarts(
    daemon: Daemon, more: tuple[str, ...], stages: tuple[str, ...]
) -> None:
    async with watching(daemon, "status", "hello", "--watch", *more) as watch:
        await watch.until("completed")
        assert (await daemon.update(tag="v2")).status == 202
        await watch.until("boot", *stages, "verify", "completed")
        await daemon.over()
        daemon.kill()
        assert "waiting for it" in await watch.complaint()
        await daemon.up()
        assert await watch.complaint() == "the agent is back\n"
        assert (await daemon.update(tag="v1")).status == 202
        await watch.until("boot", "completed")


async def test_a_watch_of_an_agent_that_was_never_there_ends(daemon: Daemon) -> None:
    code, out, err = await daemon.cli("--socket", "/nowhere/agent.sock", "status", "--watch")
    assert (code, out) == (5, "")
    assert "no agent listens on /nowhere/agent.sock" in err
