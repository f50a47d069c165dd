"""VMs without systemd: each in a session of its own, a child that outlives its parent."""

from __future__ import annotations

import contextlib
import os
import pwd
import resource
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agent.enclaves.supervisor import StartRequest, SupervisorError
from agent.host.process import PROC, Process, identify
from agent.host.threads import finish_in_thread
from agent.model.enclave import ProcessIdentity


class DetachedSupervisor:
    """Starts processes directly.

    `oom_score_adj` replaces what they would inherit: an agent that the kernel spares must not make
    its VMs, which are by far bigger, unkillable.
    """

    kind = "detached"

    def __init__(self, oom_score_adj: int = 0) -> None:
        self._oom_score_adj = oom_score_adj

    async def start(self, request: StartRequest) -> ProcessIdentity:
        return await finish_in_thread(self.start_here, request)

    async def kill(self, name: str, process: Process) -> None:
        process.kill()

    def unit(self, name: str) -> str | None:
        return None

    def start_here(self, request: StartRequest) -> ProcessIdentity:
        """`start`, in this very thread, which it blocks for some milliseconds."""
        forbid_core_dumps()
        try:
            credentials = RunAs.of(request.user)
            if credentials.owner is not None:
                for path in request.writable:
                    os.chown(path, *credentials.owner)
            process = _spawn(request, credentials)
        except OSError as error:
            raise SupervisorError(f"cannot start {request.argv[0]}") from error
        # Its end is seen through a pidfd, also by a later agent that is not its parent.
        process.returncode = 0
        identity = identify(process.pid)
        assert identity is not None, "a child that nobody waited for has an identity"
        with contextlib.suppress(OSError):  # it may be gone, or we may not be allowed to lower it
            score = PROC / str(process.pid) / "oom_score_adj"
            score.write_text(str(self._oom_score_adj))
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


def _spawn(request: StartRequest, run_as: RunAs) -> subprocess.Popen[bytes]:
    with open_output(request.output) as output:
        return subprocess.Popen(
            list(request.argv),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=Path("/"),
            env=clean_environment(),
            start_new_session=True,
            umask=0o077,
            pass_fds=request.pass_fds,
            user=run_as.uid,
            group=run_as.gid,
            extra_groups=run_as.groups,
        )
