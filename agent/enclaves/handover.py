"""The talk with the program that becomes QEMU (`vm_start.py`): who it is, then all that it gets.

Invariant: what was not handed over in time does not become a VM later.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import select
import socket
import struct
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from agent.enclaves.supervisor import StartRequest, SupervisorError
from agent.host.process import Process, identify
from agent.model.enclave import ProcessIdentity

START_S = 30.0
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid (unix(7))


def meet(
    ours: socket.socket, asking: subprocess.Popen[bytes], deadline: float
) -> tuple[ProcessIdentity, tuple[int, int]] | None:
    """Who the program is, and whose; None if `asking` ended without one."""
    ended = os.pidfd_open(asking.pid)
    try:
        poller = select.poll()
        poller.register(ours, select.POLLIN)
        poller.register(ended, select.POLLIN)
        while time.monotonic() < deadline:
            ready = dict(poller.poll(max(1, (deadline - time.monotonic()) * 1000)))
            if ready.get(ours.fileno(), 0) & select.POLLIN:
                return _who(ours)
            if ended in ready:
                return None
    finally:
        os.close(ended)
    raise SupervisorError(f"nothing was started within {START_S:g} s")


@contextlib.contextmanager
def killed_unless_done(identity: ProcessIdentity) -> Iterator[None]:
    """What was not handed over in time is not to become a VM later."""
    process = Process.open(identity)
    try:
        yield
    except BaseException:
        if process is not None:
            process.kill()
        raise
    finally:
        if process is not None:
            process.close()


def _who(ours: socket.socket) -> tuple[ProcessIdentity, tuple[int, int]] | None:
    """The sender of the message that waits, as the kernel says it; None if it is gone."""
    _, control, _, _ = ours.recvmsg(16, socket.CMSG_SPACE(_CREDENTIALS.size))
    for level, kind, data in control:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
            pid, uid, gid = _CREDENTIALS.unpack(data[: _CREDENTIALS.size])
            identity = identify(pid)
            return None if identity is None else (identity, (uid, gid))
    return None


def hand_over(
    ours: socket.socket,
    request: StartRequest,
    deadline: float,
    cage: Mapping[str, Any] | None = None,
) -> None:
    """Send arguments and descriptors; return once they were executed. Raises SupervisorError."""
    order = {
        "argv": list(request.argv),
        "environment": clean_environment(),
        "numbers": list(request.pass_fds),
        "cage": cage,
    }
    reading, writing = os.pipe()
    with open(reading, "rb", buffering=0) as outcome:  # noqa: PTH123 - a descriptor
        try:
            sent = array.array("i", [writing, *request.pass_fds])
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, sent)
            ours.sendmsg([json.dumps(order).encode()], [rights])
        finally:
            os.close(writing)
        poller = select.poll()
        poller.register(outcome, select.POLLIN)
        if not poller.poll(max(1, (deadline - time.monotonic()) * 1000)):
            raise SupervisorError(f"{request.argv[0]} was not executed in time")
        if complaint := outcome.read(4096):
            raise SupervisorError(
                f"cannot start {request.argv[0]}: {complaint.decode(errors='replace')}"
            )


@contextlib.contextmanager
def open_output(path: Path) -> Iterator[int]:
    """A descriptor to append to what a process prints."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    output = os.open(path, flags, 0o600)
    try:
        yield output
    finally:
        os.close(output)


def clean_environment() -> dict[str, str]:
    """All that a VM's process has of an environment."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8"}
