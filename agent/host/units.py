"""Programs in units of their own: what lives on must not be in the agent's control group.

A unit outlives whoever asked for it: systemd, not the agent, holds it, so that stopping, killing
or upgrading the agent ends nothing of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from agent.errors import AgentError, describe
from agent.host import ends_with, fd_broker
from agent.host.commands import (
    CommandError,
    CompletedCommand,
    RunCommand,
    run_command,
    tool_environment,
)
from agent.host.process import PROC
from agent.host.threads import finish_in_thread

RUN = ("systemd-run", "--quiet", "--collect")
BOOTED = Path("/run/systemd/system")  # sd_booted(3)
_PROBE_S = 10.0
_STATE_S = 2.0
# Put before a command: it runs in a network of its own, which ends with it.
SCRATCH_NETWORK = (*RUN, "--pipe", "--wait", "--property=PrivateNetwork=yes", "--")


async def probe_units(
    *program: str, run: RunCommand = run_command, booted: Path = BOOTED
) -> str | None:
    """Why this host cannot have services under users of their own, or None: one is tried.

    `program` is run in it and must end with success: that its user can execute it is part of it.
    """
    if not booted.is_dir():
        return "systemd does not run here"
    if os.geteuid() != 0:
        return "system units need root"
    trial = [*RUN, "--pipe", "--wait", "--property=DynamicUser=yes", "--", *program]
    try:
        done = await run(trial, timeout_s=_PROBE_S)
    except CommandError as error:
        return describe(error)
    if done.status != 0:
        return f"a transient unit does not run here: {done.complaint}"
    return None


async def host_is_stopping(run: RunCommand = run_command, booted: Path = BOOTED) -> bool:
    """Whether systemd has begun to shut this host down; not, as far as it cannot be asked."""
    if not booted.is_dir():
        return False
    try:
        done = await run(["systemctl", "is-system-running"], timeout_s=_STATE_S)
    except CommandError:
        return False
    return done.stdout.strip() == b"stopping"


class LendError(AgentError):
    """What was asked for cannot be opened, or no unit can be asked."""

    @property
    def code(self) -> str:
        return "not_lent"


class Borrow(Protocol):
    """Has a descriptor opened by somebody who may. Raises LendError."""

    async def __call__(self, *words: str) -> int: ...


async def borrow(*words: str) -> int:
    """A descriptor that a unit with more rights than ours opens for us: see `fd_broker`.

    Raises LendError. Nothing of the unit is left.
    """
    return await finish_in_thread(borrow_here, *words)


def borrow_here(*words: str) -> int:
    """The same, in this very thread."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    program = [sys.executable, "-I", "-S", fd_broker.__file__, *words]
    with ours, theirs:
        try:
            done = subprocess.run(
                [*RUN, "--pipe", "--wait", "--property=NoNewPrivileges=yes", "--", *program],
                stdin=theirs.fileno(),
                capture_output=True,
                timeout=_PROBE_S,
                env=tool_environment(),
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise LendError(f"a transient unit cannot be asked: {error}") from error
        if done.returncode != 0:
            raise LendError(CompletedCommand(done.returncode, done.stdout, done.stderr).complaint)
        _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
    return descriptors[0]


def beside_us(run: RunCommand = run_command) -> RunCommand:
    """Runs tools in units that have what ours is closed to: the host's own key, its TPM.

    What a tool reads and prints passes through its pipes alone.
    """
    properties = ("NoNewPrivileges=yes", "LimitCORE=0", "PrivateNetwork=yes", "PrivateTmp=yes")
    words = [f"--property={one}" for one in properties]

    async def run_beside_us(
        argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float = 10.0
    ) -> CompletedCommand:
        line = [*RUN, "--pipe", "--wait", *words, "--", *argv]
        return await run(line, stdin=stdin, timeout_s=timeout_s)

    return run_beside_us


def with_all_capabilities(run: RunCommand = run_command) -> RunCommand:
    """Runs tools in units that may do what ours may not, each no longer than its time and ours.

    Raises as `run` does; a tool that is given up is ended before that is told.
    """

    async def run_with_all(
        argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float = 10.0
    ) -> CompletedCommand:
        program = shutil.which(argv[0])
        if program is None:
            raise CommandError(argv, "is not there")
        unit = f"enclave-agent-tool-{secrets.token_hex(4)}.service"
        words = [f"--unit={unit}", "--pipe", "--wait", "--property=PrivateNetwork=yes"]
        words += ["--property=LimitCORE=0", f"--property=RuntimeMaxSec={timeout_s:g}"]
        own = [sys.executable, "-I", "-S", ends_with.__file__, str(os.getpid())]
        try:
            line = [*RUN, *words, "--", *own, program, *argv[1:]]
            return await run(line, stdin=stdin, timeout_s=timeout_s)
        except BaseException:
            killing = ["systemctl", "kill", "--signal=KILL", unit]
            with contextlib.suppress(CommandError):
                await asyncio.shield(run(killing, timeout_s=_STATE_S))
            raise

    return run_with_all


def in_units(
    name: str,
    description: str,
    *,
    writable: Sequence[Path],
    complaints: Path,
    run: RunCommand = run_command,
) -> RunCommand:
    """Runs tools that leave a process behind: each in a service that outlives us.

    The process is systemd's, with no more than it needs to listen below 1024 and to become another
    user; it writes to `writable` only. What the tool says on stderr passes through a file in the
    directory `complaints`. At shutdown the service ends after the enclaves, whose connections it
    carries.
    """
    properties = (
        "Before=enclaves.slice",
        "After=network.target",
        "Type=forking",
        "MemoryAccounting=yes",
        "CPUAccounting=yes",
        "LimitNOFILE=1048576",
        "LimitCORE=0",
        "UMask=0077",
        "NoNewPrivileges=yes",
        "CapabilityBoundingSet=CAP_NET_BIND_SERVICE CAP_SETUID CAP_SETGID CAP_SYS_CHROOT",
        "ProtectSystem=strict",
        "ProtectKernelTunables=yes",
        "ProtectKernelModules=yes",
        "ProtectControlGroups=yes",
        "PrivateDevices=yes",
        "RestrictNamespaces=yes",
        "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK",
        "SystemCallArchitectures=native",
        *(f"ReadWritePaths={path}" for path in writable),
    )

    async def run_in_unit(
        argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float = 10.0
    ) -> CompletedCommand:
        unit = f"{name}-{secrets.token_hex(4)}"
        said = complaints / f"{unit}.stderr"
        words = [f"--unit={unit}.service", f"--description={description}"]
        words += [f"--property={one}" for one in (*properties, f"StandardError=append:{said}")]
        try:
            done = await run([*RUN, *words, "--", *argv], stdin=stdin, timeout_s=timeout_s)
            if done.status != 0 and said.exists() and said.stat().st_size:
                return dataclasses.replace(done, stderr=said.read_bytes())
            return done
        finally:
            said.unlink(missing_ok=True)

    return run_in_unit


def runs_in(pid: int, unit: str) -> bool:
    """Whether the kernel has this process in the control group of that unit."""
    try:
        groups = (PROC / str(pid) / "cgroup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return any(unit in line.rpartition(":")[2].split("/") for line in groups.splitlines())
