"""However a test run ends, nothing of it stays: no process, no file, nothing on the host."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import leftovers
from tests.fakes.daemon_process import CHECKOUT, Daemon, processes_in
from tests.fakes.fake_vms import fake_releases, install, settings
from tests.fakes.guest_releases import config_of
from tests.fakes.host_truth import links_of, vms_in

WITH_A_VM = "tests/daemon/test_damaged_store.py"
BROKEN = """
import os
import subprocess

def test_that_leaves_something():
    subprocess.Popen(["sleep", "600"], start_new_session=True)
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """Straight in /tmp: sockets of a run within a run lie too deep in the outer one's place."""
    with tempfile.TemporaryDirectory(prefix="ea-", dir="/tmp", ignore_cleanup_errors=True) as made:
        yield Path(made)


def until(holds: Callable[[], object], what: str, timeout_s: float = 90) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def begin(place: Path, *arguments: str, directory: Path = CHECKOUT) -> subprocess.Popen[str]:
    """A test run whose things are in this place."""
    return subprocess.Popen(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", *arguments],
        cwd=directory,
        env=os.environ | {"TMPDIR": str(place), "XDG_RUNTIME_DIR": str(place)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_leaves_neither_a_process_nor_a_file(
    place: Path, how: signal.Signals
) -> None:
    with begin(place, WITH_A_VM) as run:
        until(
            lambda: any("-uuid" in argv for argv in processes_in(place).values()),
            "no VM was started",
        )
        run.send_signal(how)
        told, _ = run.communicate(timeout=90)
    assert run.returncode == (-how if how is signal.SIGKILL else pytest.ExitCode.INTERRUPTED), told
    until(lambda: not processes_in(place), f"still there: {processes_in(place)}")
    until(lambda: not list(place.iterdir()), f"still there: {list(place.iterdir())}")


def test_a_test_that_leaves_a_process_makes_the_run_fail_and_it_is_named(
    place: Path, tmp_path: Path
) -> None:
    (tmp_path / "test_broken.py").write_text(BROKEN)
    arguments = (
        "--confcutdir=/",
        "-p",
        "tests.conftest",
        f"--rootdir={tmp_path}",
        "-c",
        "/dev/null",
    )
    with begin(place, *arguments, str(tmp_path / "test_broken.py")) as run:
        told, _ = run.communicate(timeout=90)
    assert run.returncode == pytest.ExitCode.TESTS_FAILED, told
    assert "1 passed" in told
    assert "LEFT BEHIND" in told
    assert "sleep 600" in told
    until(lambda: not list(place.iterdir()), f"still there: {list(place.iterdir())}")


@pytest.mark.root
async def test_what_a_daemon_made_on_the_host_is_taken_back_and_what_is_mounted_is_not_emptied(
    place: Path, tmp_path: Path
) -> None:
    run = place / "run"
    (home := run / "ead").mkdir(parents=True)
    source = fake_releases(tmp_path, {"v1": config_of()})
    daemon = Daemon(home, source, mode="tap", settings=settings(install(tmp_path)))
    await daemon.up()
    assert (await daemon.deploy(tag="v1")).status == 202
    async with asyncio.timeout(60):
        while not vms_in(daemon):
            await asyncio.sleep(0.02)
    assert len(links_of(daemon)) == 2  # a bridge and a tap
    (outside := tmp_path / "outside").mkdir()
    (outside / "kept").touch()
    (run / "mounted").mkdir()
    subprocess.run(["mount", "--bind", outside, run / "mounted"], check=True)

    told = await asyncio.to_thread(leftovers.clean, [run])
    assert any("-uuid" in line for line in told)
    assert daemon.signal(signal.SIGKILL) == -signal.SIGKILL  # it is gone, and reaped here
    assert processes_in(run) == {}
    assert links_of(daemon) == set()
    tables = subprocess.run(["nft", "list", "tables"], check=True, capture_output=True, text=True)
    assert "enclave" not in tables.stdout
    assert not run.exists()
    assert (outside / "kept").exists()
