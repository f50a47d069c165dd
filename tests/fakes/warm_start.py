"""Daemons that start without importing anything: forked from a process that has it all imported.

They are processes like any: a session of their own, their own log, killed and reaped like others.
Only for tests that start very many; the interpreter's own start is tested by all the rest.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import agent.cli

Main = Callable[[list[str]], int]
_IMPORTED = (
    "agent.cli.run",
    "agent.daemon.run",
    "agent.host.guest_http",
    "tests.fakes.crashing_daemon",
)


class Forked:
    """What `subprocess.Popen` offers, as far as a daemon under test is watched."""

    def __init__(self, process: ForkServerProcess) -> None:
        self._process = process
        assert process.pid is not None
        self.pid = process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise TimeoutError(f"process {self.pid} does not end")
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self._process.exitcode is None:
            os.kill(self.pid, number)


def warm_start(
    main: Main,
) -> Callable[[Sequence[str], Path, Mapping[str, str], Path], Forked]:
    """A way to start a daemon (`daemon_process.Launch`): call `main` with the arguments."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_IMPORTED))

    def launch(
        arguments: Sequence[str], directory: Path, environment: Mapping[str, str], log: Path
    ) -> Forked:
        given = (main, list(arguments), directory, dict(environment), log)
        process = context.Process(target=_become, args=given)
        process.start()
        return Forked(process)

    return launch


def run_agent(arguments: list[str]) -> int:
    """As `python -m agent`."""
    sys.argv[1:] = arguments
    agent.cli.main()
    return 0


# Fields of a daemon that is started so, and is otherwise as any.
WARM: dict[str, Any] = {"command": (), "launch": warm_start(run_agent)}


def _become(
    main: Main, arguments: list[str], directory: Path, environment: dict[str, str], log: Path
) -> None:
    """In the new process: all that the command line of a shell would have set up, then `main`."""
    gc.freeze()  # what was imported is not walked again
    os.setsid()
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for standard in (1, 2):
        os.dup2(output, standard)
    os.close(output)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main(arguments))
