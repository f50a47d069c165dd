"""What every room's tests share: which of them run here, and where they keep their things."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.leftovers import Run, short_place

# Nothing is written beside the code, and a busy machine is no failure.
settings.register_profile("agent", database=None, deadline=None)
settings.load_profile("agent")

# A shell that put us into the background has had SIGINT ignored; what we start inherits that.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Asked to end, the fixtures are torn down.
signal.signal(signal.SIGTERM, signal.default_int_handler)

_QEMU = "qemu-system-x86_64"
_not_run = pytest.StashKey[list[str]]()
_figures = pytest.StashKey[list[str]]()
_run = pytest.StashKey[Run]()
_left = pytest.StashKey[list[str]]()


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """All files of this run lie in its own directories; with --basetemp, `tmp_path`s are kept."""
    config.stash[_run] = run = Run()
    if not config.option.basetemp:
        config.option.basetemp = str(run.files / "t")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """What a test left running is ended; unless the run was interrupted, it is a failure."""
    left = session.config.stash[_run].end()
    session.config.stash[_left] = left
    if left and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_unconfigure(config: pytest.Config) -> None:
    """The same where there was no session (a usage error, a collection that broke)."""
    config.stash[_run].end()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what needs root where we are not; the summary lists it."""
    if os.geteuid() == 0:
        return
    needing_root = [item for item in items if item.get_closest_marker("root")]
    config.stash[_not_run] = [item.nodeid for item in needing_root]
    if needing_root:
        config.hook.pytest_deselected(items=needing_root)
        items[:] = [item for item in items if not item.get_closest_marker("root")]


@pytest.fixture(scope="session")
def figures(request: pytest.FixtureRequest) -> list[str]:
    """Lines that the summary shows, whatever became of the tests."""
    return request.config.stash.setdefault(_figures, [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if told := terminalreporter.config.stash.get(_figures, []):
        terminalreporter.write_sep("=", "figures")
        for line in told:
            terminalreporter.write_line(line)
    if left := terminalreporter.config.stash.get(_left, []):
        terminalreporter.write_sep("=", "LEFT BEHIND: processes that no test ended", red=True)
        for line in left:
            terminalreporter.write_line(line)
    not_run = terminalreporter.config.stash.get(_not_run, [])
    if not_run:
        terminalreporter.write_sep("=", "NOT RUN: they need root", yellow=True)
        for nodeid in not_run:
            terminalreporter.write_line(nodeid)
        count = len(not_run)
        terminalreporter.write_line(f"{count} tests need root and were NOT RUN", yellow=True)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A missing QEMU is a failure: nothing real may go untested because of it."""
    if item.get_closest_marker("qemu") and shutil.which(_QEMU) is None:
        pytest.fail(f"{_QEMU} is not installed", pytrace=False)


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A private directory with a path short enough for unix sockets (108 bytes)."""
    path = short_place("ea-")
    yield path
    shutil.rmtree(path)
