"""Who keeps a VM's process: the port behind which a session of its own, or a systemd unit, stands.

Invariants of every implementation: the VM depends on nothing of the agent's (no pipe, no
terminal, no parent's signal), so that the agent can be killed at any moment; the descriptors that
it inherits are exactly those of the request; none of the agent's environment reaches it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from agent.enclaves.cage import Cage
from agent.errors import AgentError
from agent.host.process import Process
from agent.model.enclave import ProcessIdentity


class SupervisorError(AgentError):
    """A process could not be started. Nothing of it runs."""

    @property
    def code(self) -> str:
        return "qemu_not_started"


@dataclass(frozen=True, slots=True, kw_only=True)
class StartRequest:
    """One start. `pass_fds` keep their numbers; `output` takes stdout and stderr, appending.

    `user` is the name of the host's user to run as; None leaves it to the supervisor. `writable`
    are the directories that are to be that user's; `devices` all that it has to open under /dev;
    `cage` closes everything else to it, as far as it is one; `root`: an empty directory for that.
    `stop_socket`: the monitor over which a stop that nobody told the agent of can ask the guest,
    which it does if `asks_guest`, and has QEMU end at once if not.
    """

    name: str
    argv: Sequence[str]
    pass_fds: Sequence[int]
    output: Path
    user: str | None = None
    writable: Sequence[Path] = ()
    devices: Sequence[Path] = ()
    stop_socket: Path | None = None
    asks_guest: bool = True
    cage: Cage | None = None
    root: Path | None = None


class Supervisor(Protocol):
    """Starts processes, and ends them without asking."""

    kind: str  # "detached" or "systemd", for /status

    async def start(self, request: StartRequest) -> ProcessIdentity:
        """Start it and return once it was executed. Raises SupervisorError.

        A cancellation is raised only after the start: look for the process by what it holds.
        """
        ...

    async def kill(self, name: str, process: Process) -> None:
        """SIGKILL. Whether and when the process is gone is for the caller to watch."""
        ...

    def put_away(self, name: str) -> None:
        """Remove what is left on the host of a process that is gone. Idempotent."""
        ...

    def unit(self, name: str) -> str | None:
        """The unit that a process of this name is started in; None if it is given none."""
        ...
