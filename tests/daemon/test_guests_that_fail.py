"""A guest hangs or resets while it boots, gets sick when it is too late, or boots for too long.

What gets sick in any other step: see `test_bad_days`.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.daemon.conftest import running
from tests.fakes.daemon_process import Daemon
from tests.fakes.fake_vms import Guests, fake_releases, install, settings
from tests.fakes.guest_releases import config_of
from tests.fakes.host_truth import discrepancies

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

LONG_BOOT_S = 60
AT_ONCE_S = 20  # on a machine that is busy, too; a third of the boot
CONFIGS = {
    **dict.fromkeys(("v1", "v2"), config_of()),
    "hangs": config_of({"GUEST_FREEZE_AFTER_S": "0"}, start_period="500ms"),
    "resets": config_of({"GUEST_RESET_AFTER_S": "1", "GUEST_SLOW_STAGE": "models:30"}),
    "panics": config_of({"GUEST_PANIC_AFTER_S": "1", "GUEST_SLOW_STAGE": "models:30"}),
    "dies": config_of({"GUEST_PANIC_AFTER_S": "4"}),
    "deaf": config_of({"GUEST_IGNORE_ACPI": "1"}),
    "slow": config_of({"GUEST_SLOW_STAGE": f"models:{LONG_BOOT_S}"}),
}
UPDATE = {"dwell_s": 0.2, "soak_s": 0.5, "drain_s": 1, "stop_grace_s": 1, "boot_deadline_s": 2}
PROBES = {"interval_s": 0.1, "timeout_s": 0.5, "success_threshold": 1, "failure_threshold": 2}
_HELLO = "/v1/deployments/hello"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    directory = tmp_path_factory.mktemp("fake")
    return install(directory), fake_releases(directory, CONFIGS)


@pytest_asyncio.fixture(loop_scope="module", params=[{}])
async def daemon(
    parts: tuple[Path, Path], request: pytest.FixtureRequest
) -> AsyncIterator[Daemon]:
    """With v1 deployed; the parameter changes its times."""
    program, source = parts
    given = settings(program, update=UPDATE | request.param, probes=PROBES)
    async with running(source, settings=given) as daemon:
        assert (await daemon.deploy(tag="v1")).status == 202
        assert (await daemon.over())["status"] == "completed"
        yield daemon


def times(**update: float) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("daemon", [update], indirect=True)


async def serving(daemon: Daemon) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", daemon.plain)
    try:
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        return str(json.loads((await reader.read()).partition(b"\r\n\r\n")[2])["version"])
    finally:
        writer.close()


async def failed(daemon: Daemon) -> dict[str, Any]:
    """The update, when it is over; v1 serves as if nothing had been."""
    update = await daemon.over()
    assert update["status"] == "failed"
    await daemon.until(lambda d: d is not None and d["status"] == "running")
    assert await serving(daemon) == "v1"
    assert await discrepancies(daemon) == []
    return update


async def test_a_guest_that_never_answers_fails_in_its_boot(daemon: Daemon) -> None:
    assert (await daemon.update(tag="hangs")).status == 202
    update = await failed(daemon)
    assert (update["step"], update["ready_at"]) == ("boot", None)
    assert "did not answer" in update["error"]["detail"]


async def test_a_guest_that_resets_itself_fails_in_its_boot(daemon: Daemon) -> None:
    """Its measured launch is over with that: it is never let run on."""
    assert (await daemon.update(tag="resets")).status == 202
    update = await failed(daemon)
    assert (update["step"], update["error"]["code"]) == ("boot", "guest_reset")


async def test_a_guest_that_panics_fails_in_its_boot(daemon: Daemon) -> None:
    assert (await daemon.update(tag="panics")).status == 202
    update = await failed(daemon)
    assert (update["step"], update["error"]["code"]) == ("boot", "guest_panicked")


async def test_one_that_panics_while_it_serves_is_launched_again_and_says_why(
    daemon: Daemon,
) -> None:
    assert (await daemon.update(tag="dies")).status == 202
    assert (await daemon.over())["status"] == "completed"
    seen = await daemon.until(lambda d: d is not None and d["status"] == "degraded")
    assert seen is not None
    assert seen["degraded"]["code"] == "guest_panicked"
    assert "kernel panicked" in seen["degraded"]["detail"]
    again = await daemon.until(lambda d: d is not None and d["status"] == "running")
    assert again is not None
    assert again["degraded"] is None


@times(stop_grace_s=4, boot_deadline_s=10)
async def test_an_ignored_power_button_is_waited_for_once(daemon: Daemon) -> None:
    """The second stop of such an image costs no grace. What waits for an answer is reset."""
    took = []
    for _ in range(2):
        assert (await daemon.update(tag="deaf")).status == 202
        assert (await daemon.over())["status"] == "completed"
        reader, writer = await asyncio.open_connection("127.0.0.1", daemon.plain)
        writer.write(b"GET / HT")
        begun = time.monotonic()
        assert (await daemon.update(tag="v2", strategy="stop_then_start")).status == 202
        update = await daemon.over()
        assert (update["status"], update["reset_connections"]) == ("completed", 1)
        took.append(time.monotonic() - begun)
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()
    assert took[0] > 4
    assert update["downtime_s"] < 4


@times(drain_s=2)
async def test_a_version_that_got_sick_while_the_old_one_drained_can_be_rolled_back(
    daemon: Daemon, parts: tuple[Path, Path]
) -> None:
    """The time to take the traffic back is over; a person is told."""
    guests = Guests(parts[0])
    reader, writer = await asyncio.open_connection("127.0.0.1", daemon.plain)
    assert (await daemon.update(tag="v2")).status == 202
    await daemon.step("drain")
    guests.order("v2", "sick")
    update = await daemon.over()
    assert (update["status"], update["reset_connections"]) == ("completed", 0)
    assert await reader.read() == b"", "nothing was under way over it"
    writer.close()
    seen = await daemon.until(lambda d: d is not None and d["status"] == "degraded")
    assert seen is not None
    assert (seen["tag"], seen["enclaves"][0]["healthy"]) == ("v2", False)
    assert seen["degraded"]["detail"]
    assert seen["degraded"]["probe"]
    assert (await daemon.send("POST", f"{_HELLO}/rollback", {"to": "v1"})).status == 202
    assert (await daemon.over())["status"] == "completed"
    assert await serving(daemon) == "v1"
    assert await discrepancies(daemon) == []


@times(boot_deadline_s=2 * LONG_BOOT_S)
async def test_a_cancel_ends_a_long_boot_at_once(daemon: Daemon, figures: list[str]) -> None:
    """Before the stop of the old version that is all; after it the deployment has failed."""
    for strategy in ("blue_green", "stop_then_start"):
        assert (await daemon.update(tag="slow", strategy=strategy)).status == 202
        await daemon.step("boot")
        (row,) = [row for row in (await here(daemon))["enclaves"] if row["revision"] != 1]
        answer = await daemon.send("POST", f"{_HELLO}/updates/current/cancel")
        begin = time.monotonic()
        assert answer.status == 202
        while Path(f"/proc/{row['pid']}").exists():
            await asyncio.sleep(0.01)
        took = time.monotonic() - begin
        figures.append(
            f"a cancel in a boot of {LONG_BOOT_S} s, {strategy}: its VM is gone {took:.2f} s later"
        )
        assert took < AT_ONCE_S
        update = await daemon.over()
        assert await discrepancies(daemon) == []
        if strategy == "blue_green":
            assert (update["status"], update["error"]) == ("cancelled", None)
            assert await serving(daemon) == "v1"
    assert (update["status"], update["error"]["code"]) == ("failed", "cancelled_after_stop")
    assert (await here(daemon))["status"] == "failed"
    with pytest.raises(ConnectionRefusedError):
        await serving(daemon)


async def here(daemon: Daemon) -> dict[str, Any]:
    seen = await daemon.deployment()
    assert seen is not None
    return seen
