"""What every room's tests share: which of them run here, and a directory for unix sockets."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Nothing is written beside the code, and a busy machine is no failure.
settings.register_profile("agent", database=None, deadline=None)
settings.load_profile("agent")

# A shell that put us into the background has had SIGINT ignored; what we start inherits that.
signal.signal(signal.SIGINT, signal.default_int_handler)

_QEMU = "qemu-system-x86_64"
_not_run = pytest.StashKey[list[str]]()
_figures = pytest.StashKey[list[str]]()


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
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    base = runtime if runtime and os.access(runtime, os.W_OK) else "/tmp"
    path = Path(tempfile.mkdtemp(prefix="ea-", dir=base))
    yield path
    shutil.rmtree(path)
