"""Writes to kernel attributes that may block for as long as the kernel likes.

An unbind waits for whoever has the device open, a reset for the hardware; neither can be called
off. So the write is made by a process of its own (`dd`, which every distribution has), in a
session of its own and with none of our files: the event loop never waits for it, and if the kernel
keeps it for ever the agent can still end, let its lock go and be started again. A thread would not
do: one that the kernel keeps holds the whole process, and every file of it, until it returns.
"""

from __future__ import annotations

from pathlib import Path

from agent.errors import AgentError
from agent.host.commands import CommandError, CommandTimeoutError, RunCommand, run_command


class AttributeWriteError(AgentError):
    """The kernel refused the value. The text has the attribute and the kernel's word for it."""

    @property
    def code(self) -> str:
        return "attribute_refused"


class AttributeStuckError(AttributeWriteError):
    """The write did not return in time. It may still take effect, at any time later."""

    @property
    def code(self) -> str:
        return "attribute_stuck"


async def write_attribute(
    path: Path, text: str, *, deadline_s: float, run: RunCommand = run_command
) -> None:
    """Write `text` in one write. Raises AttributeWriteError, or AttributeStuckError for time.

    Whoever wants to know whether it took effect reads the outcome, not this return.
    """
    argv = ["dd", f"of={path}", "conv=nocreat", "status=none"]
    try:
        done = await run(argv, stdin=text.encode(), timeout_s=deadline_s)
    except CommandTimeoutError as error:  # killed, and perhaps not let go even so
        detail = f"writing to {path} did not return within {deadline_s:g} s"
        raise AttributeStuckError(detail) from error
    except CommandError as error:
        raise AttributeWriteError(f"cannot write {path}") from error
    if done.status != 0:
        reason = done.complaint.rpartition(": ")[2]
        raise AttributeWriteError(f"writing {text.strip()!r} to {path}: {reason}")
