"""VMs without systemd: each in a session of its own, a child that outlives its parent.

One in a cage is begun as the program that puts it on and becomes QEMU (`vm_start.py`); that needs
root. Its limits are a control group's where this host has them for us (`cgroups`).
"""

from __future__ import annotations

import contextlib
import os
import pwd
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.enclaves import vm_start
from agent.enclaves.cage import Cage
from agent.enclaves.cage_order import order_as_root
from agent.enclaves.handover import (
    START_S,
    clean_environment,
    hand_over,
    meet,
    open_output,
)
from agent.enclaves.supervisor import StartRequest, SupervisorError
from agent.host.cgroups import Cgroups
from agent.host.process import PROC, Process, identify
from agent.host.threads import finish_in_thread
from agent.model.enclave import ProcessIdentity


class DetachedSupervisor:
    """Starts processes directly.

    `oom_score_adj` replaces what they would inherit: an agent that the kernel spares must not make
    its VMs, which are by far bigger, unkillable.
    """

    kind = "detached"

    def __init__(self, oom_score_adj: int = 0, cgroups: Cgroups | None = None) -> None:
        self._oom_score_adj = oom_score_adj
        self._cgroups = cgroups

    async def start(self, request: StartRequest) -> ProcessIdentity:
        return await finish_in_thread(self.start_here, request)

    async def kill(self, name: str, process: Process) -> None:
        process.kill()

    def unit(self, name: str) -> str | None:
        return None

    def put_away(self, name: str) -> None:
        if self._cgroups is not None:
            self._cgroups.remove(name)

    def start_here(self, request: StartRequest) -> ProcessIdentity:
        """`start`, in this very thread, which it blocks for some milliseconds."""
        forbid_core_dumps()
        try:
            if request.cage is not None:
                identity = self._start_caged(request, request.cage)
            else:
                identity = _start_plainly(request)
        except OSError as error:
            raise SupervisorError(f"cannot start {request.argv[0]}: {error}") from error
        with contextlib.suppress(OSError):  # it may be gone, or we may not be allowed to lower it
            score = PROC / str(identity.pid) / "oom_score_adj"
            score.write_text(str(self._oom_score_adj))
        return identity

    def _start_caged(self, request: StartRequest, cage: Cage) -> ProcessIdentity:
        """Until it is QEMU it ends with us: a talk that breaks off leaves no process."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, open_output(request.output) as output:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            with theirs:
                program = [sys.executable, "-I", "-S", vm_start.__file__]
                started = _spawn(program, theirs.fileno(), output)
            try:
                identity = self._finish(ours, started, request, cage)
            except BaseException:
                started.kill()
                started.wait()
                raise
        started.returncode = 0  # as of one that is started plainly
        return identity

    def _finish(
        self,
        ours: socket.socket,
        started: subprocess.Popen[bytes],
        request: StartRequest,
        cage: Cage,
    ) -> ProcessIdentity:
        deadline = time.monotonic() + START_S
        met = meet(ours, started, deadline)
        if met is None or request.root is None:
            raise SupervisorError("the program that becomes QEMU ended at once")
        identity, _ = met
        for path in request.writable:
            os.chown(path, cage.uid, cage.uid)
        if self._cgroups is not None:
            memory, tasks = cage.memory_max_mib, cage.tasks_max
            self._cgroups.make(request.name, memory_max_mib=memory, tasks_max=tasks)
            self._cgroups.add(request.name, identity.pid)
        order = order_as_root(
            cage, root=request.root, writable=request.writable, devices=request.devices
        )
        hand_over(ours, request, deadline, order)
        return identity


def _start_plainly(request: StartRequest) -> ProcessIdentity:
    credentials = RunAs.of(request.user)
    if credentials.owner is not None:
        for path in request.writable:
            os.chown(path, *credentials.owner)
    with open_output(request.output) as output:
        process = _spawn(
            request.argv, subprocess.DEVNULL, output, pass_fds=request.pass_fds, run_as=credentials
        )
    # Its end is seen through a pidfd, also by a later agent that is not its parent.
    process.returncode = 0
    identity = identify(process.pid)
    assert identity is not None, "a child that nobody waited for has an identity"
    return identity


@dataclass(frozen=True, slots=True)
class RunAs:
    """Whom a process runs as; all None for the agent's own user."""

    uid: int | None = None
    gid: int | None = None
    groups: tuple[int, ...] | None = None

    @property
    def owner(self) -> tuple[int, int] | None:
        """Uid and gid for what must belong to that user; None if it is the agent's own."""
        return None if self.uid is None or self.gid is None else (self.uid, self.gid)

    @classmethod
    def of(cls, user: str | None) -> RunAs:
        """Of the user of that name, with all its groups. Raises SupervisorError."""
        if user is None:
            return cls()
        try:
            entry = pwd.getpwnam(user)
        except KeyError:
            raise SupervisorError(f"there is no user {user!r} on this host") from None
        if entry.pw_uid == os.geteuid():
            return cls()
        groups = tuple(os.getgrouplist(user, entry.pw_gid))
        return cls(entry.pw_uid, entry.pw_gid, groups)


def forbid_core_dumps() -> None:
    """No core dump of this process or of what it starts: both hold secrets."""
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    if soft != 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, hard))


def _spawn(
    argv: Sequence[str],
    stdin: int,
    output: int,
    *,
    pass_fds: Sequence[int] = (),
    run_as: RunAs | None = None,
) -> subprocess.Popen[bytes]:
    run_as = run_as or RunAs()
    return subprocess.Popen(
        list(argv),
        stdin=stdin,
        stdout=output,
        stderr=output,
        cwd=Path("/"),
        env=clean_environment(),
        start_new_session=True,
        umask=0o077,
        pass_fds=pass_fds,
        user=run_as.uid,
        group=run_as.gid,
        extra_groups=run_as.groups,
    )
