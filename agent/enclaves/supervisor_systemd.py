"""VMs under systemd: each a transient service in `enclaves.slice`, under a user of its own.

systemd executes a program of ours in the unit, which says who it is, is handed QEMU's descriptors
over its standard input and becomes QEMU (`vm_start`). `systemd-run` only asks for the unit, and
is sent away once QEMU was executed: nothing of the VM is in the agent's control group.

Invariants: QEMU can open the devices of its VM and no others, and write into its own directory
and nowhere else; a stop of the unit, whoever asks for it, powers the guest off first
(`unit_stop`); a start that was cut short leaves a unit that ends by itself, or a VM that holds
its enclave's lock.
"""

from __future__ import annotations

import contextlib
import grp
import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from agent.enclaves import unit_stop, vm_start
from agent.enclaves.cage_order import order_in_unit
from agent.enclaves.cage_unit import caged
from agent.enclaves.handover import START_S, hand_over, killed_unless_done, meet, open_output
from agent.enclaves.supervisor import StartRequest, SupervisorError
from agent.host.commands import tool_environment
from agent.host.process import Process
from agent.host.threads import finish_in_thread
from agent.host.units import RUN
from agent.model.enclave import ProcessIdentity

ENDING_S = 15.0  # beyond the grace: for `quit`, for QEMU to give its memory back
_AGAIN_S = 0.05
_CAT = "/usr/bin/systemd-cat"

# Who stops first at shutdown is who starts last: the agent, so that it relaunches nothing; then
# the enclaves, with their grace; then what carries their connections.
_PROPERTIES = (
    "Before=enclave-agent.service",
    "After=network.target",
    "Type=exec",
    "MemoryAccounting=yes",
    "CPUAccounting=yes",
    "TasksAccounting=yes",
    "MemorySwapMax=0",  # a guest's memory and its secrets reach no disk
    "LimitMEMLOCK=infinity",  # a passed-through device pins all of the guest's memory
    "LimitCORE=0",
    "LimitNOFILE=65536",
    "OOMPolicy=kill",
    "KillMode=control-group",
    "DevicePolicy=closed",
    "NoNewPrivileges=yes",
    "CapabilityBoundingSet=",
    "ProtectSystem=strict",
    "ProtectHome=read-only",  # where an agent that is not installed may lie
    "ProtectProc=invisible",
    "ProtectKernelTunables=yes",
    "ProtectKernelModules=yes",
    "ProtectKernelLogs=yes",
    "ProtectControlGroups=yes",
    "ProtectHostname=yes",
    "PrivateTmp=yes",
    "RestrictNamespaces=yes",
    "RestrictRealtime=yes",
    "RestrictSUIDSGID=yes",
    "LockPersonality=yes",
    "SystemCallArchitectures=native",
    "UMask=0077",
    "WorkingDirectory=/",
)


class SystemdSupervisor:
    """`stop_grace_s`: what a guest has to power off when its unit is stopped."""

    kind = "systemd"

    def __init__(self, stop_grace_s: float) -> None:
        self._stop_grace_s = stop_grace_s

    async def start(self, request: StartRequest) -> ProcessIdentity:
        return await finish_in_thread(self._start, request)

    async def kill(self, name: str, process: Process) -> None:
        process.kill()

    def put_away(self, name: str) -> None:
        """It is systemd's to do."""

    def unit(self, name: str) -> str:
        return f"{name}.service"

    def _start(self, request: StartRequest) -> ProcessIdentity:
        """Asks again while the unit of a VM that ended just now is still being put away."""
        deadline = time.monotonic() + START_S
        try:
            while True:
                try:
                    return self._start_once(request, deadline)
                except UnitExistsError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(_AGAIN_S)
        except OSError as error:
            raise SupervisorError(f"cannot start {request.argv[0]}") from error

    def _start_once(self, request: StartRequest, deadline: float) -> ProcessIdentity:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, open_output(request.output) as output:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            with theirs:
                asking = self._ask(request, theirs, output)
            try:
                met = meet(ours, asking, deadline)
                if met is None:
                    raise _refusal(request.output, output)
                identity, owner = met
                cage = None if request.cage is None else order_in_unit(request.cage)
                with killed_unless_done(identity):
                    _give(request, owner)
                    hand_over(ours, request, deadline, cage)
            finally:
                asking.kill()  # it would wait for the unit's end; the unit does not need it
                asking.wait()
        return identity

    def _ask(
        self, request: StartRequest, theirs: socket.socket, output: int
    ) -> subprocess.Popen[bytes]:
        words = ["--pipe", "--slice=enclaves.slice", f"--unit={self.unit(request.name)}"]
        words.append(f"--description=Enclave {request.name.removeprefix('enclave-')}")
        words += [f"--property={one}" for one in properties(request, self._stop_grace_s)]
        return subprocess.Popen(
            [*RUN, *words, "--", *_program(vm_start.__file__, caged=request.cage is not None)],
            stdin=theirs.fileno(),
            stdout=output,
            stderr=output,
            env=tool_environment(),
            start_new_session=True,
        )


def _program(path: str, *, caged: bool) -> list[str]:
    """One of ours. In a cage there is no environment of Python's, and no link into one."""
    if not caged:
        return [sys.executable, "-I", "-S", path]
    return [str(Path(sys.executable).resolve()), "-I", "-S", str(Path(path).resolve())]


class UnitExistsError(SupervisorError):
    """The unit of an earlier start of this enclave is not put away yet."""


def properties(request: StartRequest, stop_grace_s: float) -> Iterator[str]:
    """What the unit is, as `systemd-run --property` takes it."""
    yield from _PROPERTIES
    # A name that nobody has: systemd gives it a number for as long as the unit is there.
    yield f"User={request.user or request.name}"
    yield f"DynamicUser={'no' if request.user else 'yes'}"
    for path in request.writable:
        yield f"BindPaths={path}"
    for device in request.devices:
        yield f"DeviceAllow={device} rw"
    for group in _groups(request.devices):
        yield f"SupplementaryGroups={group}"
    if request.cage is not None:
        assert request.root is not None, "a cage has a root"
        yield from caged(request.cage, root=request.root, devices=request.devices)
    else:
        yield "RestrictAddressFamilies=AF_UNIX AF_INET AF_VSOCK"
    if request.stop_socket is not None:
        grace_s = stop_grace_s if request.asks_guest else 0.0
        program = " ".join(_program(unit_stop.__file__, caged=request.cage is not None))
        words = f"{program} {request.stop_socket} {grace_s:g}"
        # What it says is not QEMU's output. No shell, no quotes: systemd writes the words down and
        # reads them again, with less care for what was escaped, whenever it is reloaded.
        yield f"ExecStop={_CAT} --identifier=enclave-stop {words}"
    yield f"TimeoutStopSec={stop_grace_s + ENDING_S:g}"


def _groups(devices: Sequence[Path]) -> list[str]:
    """The groups that some of the devices are open to; root's own are given away one by one."""
    found: list[str] = []
    for device in devices:
        with contextlib.suppress(OSError, KeyError):
            status = device.stat()
            group = grp.getgrgid(status.st_gid).gr_name
            if status.st_gid and status.st_mode & stat.S_IWGRP and group not in found:
                found.append(group)
    return found


def _give(request: StartRequest, owner: tuple[int, int]) -> None:
    """What the VM writes to, and the devices that are no group's, belong to its user."""
    for path in request.writable:
        os.chown(path, *owner)
    for device in request.devices:
        with contextlib.suppress(FileNotFoundError):
            status = device.stat()
            if not status.st_mode & stat.S_IWOTH and not (
                status.st_gid and status.st_mode & stat.S_IWGRP
            ):
                os.chown(device, owner[0], -1)


def _refusal(path: Path, output: int) -> SupervisorError:
    """From what systemd-run said, which is taken out of what is QEMU's."""
    said = path.read_text(errors="replace")
    os.ftruncate(output, 0)
    lines = [line for line in said.splitlines() if line.strip()]
    reason = lines[-1] if lines else "the program in it ended at once"
    kind = UnitExistsError if "already loaded" in said or "already exists" in said else None
    return (kind or SupervisorError)(f"systemd does not start the unit: {reason}")
