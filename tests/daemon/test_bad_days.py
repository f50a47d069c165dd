"""A VM is killed, or its guest goes wrong, in each step of an update: each time the promised end.

The tables are domain.md's promises; a clean run of each strategy says which steps there are.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.daemon.bad_days import LONG_S, OTHER, SHORT_S, Case, End, Stage, serving
from tests.fakes import halting_daemon
from tests.fakes.daemon_process import Daemon, place
from tests.fakes.fake_vms import Guests, fake_releases, install, settings
from tests.fakes.guest_releases import config_of
from tests.fakes.host_truth import discrepancies
from tests.fakes.warm_start import warm_start

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

BLUE, STOP = "blue_green", "stop_then_start"
CONFIGS = {tag: config_of(start_period="600s") for tag in OTHER}
UPDATE = {"drain_s": 600, "stop_grace_s": 1}
PROBES = {"interval_s": 0.1, "timeout_s": 0.5, "success_threshold": 1, "failure_threshold": 2}
HALTING = warm_start(halting_daemon.main)

GOES_ON = End("completed", "retire", "new")
MENDED = End("completed", "retire", "new", relaunched="old")
REVERTED = End("failed", "revert", "old")


def untouched(step: str, code: str | None = "qemu_exit") -> End:
    """The new version failed, and the old one serves as if nothing had been."""
    return End("failed", step, "old", code=code)


def down(step: str, code: str = "qemu_exit") -> End:
    """It failed after the stop of the old version."""
    return End("failed", step, None, status="failed", code=code)


KILLED = {
    **{
        Case(BLUE, step, "old"): MENDED
        for step in ("prepare", "launch", "boot", "verify", "accept")
    },
    **{Case(BLUE, step, "old"): GOES_ON for step in ("switch", "soak", "drain", "retire")},
    Case(BLUE, "revert", "old"): End("failed", "revert", "old", relaunched="old"),
    Case(BLUE, "teardown", "old"): End("cancelled", "boot", "old", relaunched="old"),
    **{Case(BLUE, step, "new"): untouched(step) for step in ("boot", "verify", "accept")},
    Case(BLUE, "launch", "new"): untouched("launch", "qemu_exited"),
    **{Case(BLUE, step, "new"): REVERTED for step in ("switch", "soak", "revert")},
    **{
        Case(BLUE, step, "new"): End("completed", "retire", "new", relaunched="new")
        for step in ("drain", "retire")
    },
    Case(BLUE, "teardown", "new"): End("cancelled", "boot", "old"),
    Case(STOP, "prepare", "old"): End("completed", "soak", "new", either=True),
    Case(STOP, "stop_old", "old"): End("completed", "soak", "new"),
    Case(STOP, "accept", "old"): End("completed", "soak", "new", relaunched="old"),
    **{Case(STOP, step, "new"): down(step) for step in ("boot", "verify", "soak")},
    Case(STOP, "launch", "new"): down("launch", "qemu_exited"),
    Case(STOP, "switch", "new"): down("soak"),
    Case(STOP, "teardown", "new"): down("boot", "cancelled_after_stop"),
}
SICK = {
    Case(BLUE, step, "new", what): end
    for what in ("sick", "frozen", "reset")
    for step, end in {
        "accept": untouched("accept", "guest_reset" if what == "reset" else None),
        "soak": REVERTED,
        "drain": End("completed", "retire", "new", relaunched="new")
        if what == "reset"
        else End("completed", "retire", "new", status="degraded"),
    }.items()
}
ENDS = KILLED | SICK
WITHOUT_A_VM = {BLUE: set(), STOP: {"release"}}  # the old one is gone, the new one to come
BACKWARDS = {"revert", "teardown"}


def times_for(case: Case) -> tuple[float, float]:
    """Dwell and soak. What fails after the switch is not overtaken by the end of its soak."""
    if ENDS[case].update == "completed":
        return SHORT_S, SHORT_S
    dwells = case.strategy == STOP and case.step in ("switch", "soak")
    return LONG_S if dwells else SHORT_S, LONG_S


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    directory = tmp_path_factory.mktemp("fake")
    return install(directory), fake_releases(directory, CONFIGS)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(parts: tuple[Path, Path]) -> AsyncIterator[Stage]:
    program, source = parts
    given = settings(program, update=UPDATE, probes=PROBES)
    daemon = Daemon(place(), source, settings=given, launch=HALTING)
    daemon.command = ("--orders", str(daemon.home / "orders"))
    try:
        await daemon.up()
        yield Stage(daemon, Guests(program))
    finally:
        await daemon.leave()


def there(case: Case) -> set[str]:
    """Whose VMs the table says exist in that step."""
    same = (case.strategy, case.step)
    return {one.which for one in KILLED if (one.strategy, one.step) == same}


@pytest.mark.parametrize("case", sorted(ENDS, key=times_for), ids=str)
async def test_whatever_befalls_a_vm_in_a_step_the_end_is_the_promised_one(
    stage: Stage, case: Case
) -> None:
    end, daemon = ENDS[case], stage.daemon
    update = await stage.run(case, there(case), times_for(case))
    assert (update["status"], update["step"]) == (end.update, end.step), update["error"]
    if end.code:
        assert update["error"]["code"] == end.code
    relaunched = await stage.until_relaunched(end.relaunched)
    assert end.either or relaunched == ({end.relaunched} if end.relaunched else set())
    await daemon.until(lambda d: d is not None and d["status"] == end.status)
    if end.serves is None:
        assert await serving(daemon) is None
    elif end.status != "degraded":
        await stage.back(stage.old if end.serves == "old" else stage.new)
    if end.serves == "old" and not relaunched:
        assert "old" in stage.vms()
    assert await discrepancies(daemon) == []
    stage.spoilt = bool(relaunched)


@pytest.mark.parametrize("strategy", [BLUE, STOP])
async def test_every_step_that_a_clean_run_passes_is_in_the_table(
    stage: Stage, strategy: str
) -> None:
    known = {case.step for case in KILLED if case.strategy == strategy} - BACKWARDS
    assert await stage.clean_run(strategy) == known | WITHOUT_A_VM[strategy]
