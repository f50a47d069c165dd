"""The traffic proxy as a process of its own, so that the agent's end drops no connection.

Life: take the lock beside the socket (one proxy per socket), resume the recorded routes, open the
control socket, say so, serve until told to stop. Detached, it is in a session of its own with
nothing inherited but its log.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from agent.errors import AgentError, describe
from agent.host.files import LockHeldError, lock_exclusive
from agent.host.patient_stderr import PatientStderr
from agent.traffic.proxy.control import Control
from agent.traffic.proxy.router import Router

_READY = b"ready"
_OTHER_FILES = 100  # than those of connections
_MOST_FILES = 1 << 18  # of which the proxy makes use; a connection costs memory, too


def run(socket_path: Path, state_file: Path, ready: Callable[[], None] = lambda: None) -> None:
    """Serve until SIGTERM or a shutdown request. Raises LockHeldError, StorageError, OSError."""
    with lock_exclusive(socket_path.with_name(socket_path.name + ".lock")):
        capacity = max(1, (_raise_file_limit() - _OTHER_FILES) // 2)
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_serve(Router(state_file, capacity), socket_path, ready))


def run_detached(socket_path: Path, state_file: Path, log_file: Path) -> int:
    """Return 0 once a proxy serves the socket, this one or another; else complain and return 1."""
    reading, writing = os.pipe()
    if os.fork():
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            outcome = pipe.read()
        if outcome != _READY:
            sys.stderr.write(outcome.decode(errors="replace") + "\n")
        return 0 if outcome == _READY else 1
    os.close(reading)
    outcome = b""
    try:
        _detach(log_file, writing)
        run(socket_path, state_file, ready=lambda: _tell(writing, _READY))
    except LockHeldError:
        outcome = _READY
    except (AgentError, OSError) as error:
        outcome = describe(error).encode()
        return 1
    finally:
        if outcome:
            with contextlib.suppress(OSError):
                _tell(writing, outcome)
    return 0


def _tell(pipe: int, outcome: bytes) -> None:
    os.write(pipe, outcome)
    os.close(pipe)


async def _serve(router: Router, socket_path: Path, ready: Callable[[], None]) -> None:
    control = Control(router)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, control.stop.set)
    await router.resume()
    server = await control.open(socket_path)
    ending_idle = loop.create_task(router.end_idle(), name="end-idle")
    gc.freeze()
    ready()
    await control.stop.wait()
    ending_idle.cancel()
    # The control socket goes last: whoever waits on it then finds every port free.
    router.close()
    socket_path.unlink(missing_ok=True)
    server.close()


def _detach(log_file: Path, kept: int) -> None:
    """Only the log and `kept` stay open: who started us may wait for the end of anything else."""
    os.setsid()
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDONLY)
    log = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for descriptor, place in ((null, 0), (log, 1), (log, 2)):
        os.dup2(descriptor, place)
    os.closerange(3, kept)
    os.closerange(kept + 1, os.sysconf("SC_OPEN_MAX"))


def _raise_file_limit() -> int:
    """Each connection takes two descriptors."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """Uvloop's where it is installed. The agent itself runs on asyncio's: programs that it starts
    under uvloop inherit the sockets of their own pipes, which then outlive them.
    """
    factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    with contextlib.suppress(ImportError):
        factory = importlib.import_module("uvloop").new_event_loop
    return factory


def main(socket_path: Path, state_file: Path, log_file: Path | None) -> int:
    """With a log the proxy detaches and this returns; without, it stays in the foreground."""
    # A log file is written to; whoever reads standard error must not be waited for.
    handlers = None if log_file is not None else [PatientStderr()]
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
        handlers=handlers,
    )
    socket_path, state_file = socket_path.absolute(), state_file.absolute()
    if log_file is not None:
        return run_detached(socket_path, state_file, log_file.absolute())
    try:
        run(socket_path, state_file)
    except (AgentError, OSError) as error:
        sys.stderr.write(describe(error) + "\n")
        return 1
    return 0
