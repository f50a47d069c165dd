"""Asks a QEMU what it can do: started without a machine, asked over QMP, ended.

Invariant: an answer is believed of that very executable, in this boot and for this user alone; no
process is left behind. It takes about 100 ms, and nothing once it is known.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
from qemu.qmp import ExecuteError, QMPClient, QMPError

from agent.enclaves.binary import BinaryIdentity, binary_identity
from agent.enclaves.capabilities import DEVICES, OBJECTS, QemuCapabilities, SevPlatform
from agent.enclaves.supervisor import StartRequest, SupervisorError
from agent.enclaves.supervisor_detached import DetachedSupervisor
from agent.errors import AgentError
from agent.host.files import StorageError, read_bounded, write_atomic
from agent.host.process import Process, boot_id
from agent.host.threads import finish_in_thread

PROBE_S = 15.0
END_S = 5.0
_MAX_BYTES = 256 << 10
# What an answer is about: of an earlier version of the agent it may be about less.
_ASKED = (*OBJECTS, *DEVICES, "q35")


class QemuProbeError(AgentError):
    """QEMU is not there, or did not say what it can do."""

    @property
    def code(self) -> str:
        return "qemu_unknown"


class _Known(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An answer, and whose it is."""

    boot_id: str
    user: str | None
    binary: BinaryIdentity
    asked: tuple[str, ...]
    capabilities: QemuCapabilities


class QemuProbe:
    """What one QEMU can do. `sev`: its processor's numbers are wanted too.

    Without them an answer is not kept: whoever mends /dev/sev wants it asked anew.
    """

    def __init__(
        self, *, binary: str, user: str | None, state_dir: Path, run_dir: Path, sev: bool
    ) -> None:
        self._binary = binary
        self._user = user
        self._cache = state_dir / "qemu.json"
        self._output = run_dir / "qemu-probe"
        self._sev = sev
        self._known: _Known | None = None
        self._asking = asyncio.Lock()

    async def capabilities(self) -> QemuCapabilities:
        """Known, or asked now. Raises QemuProbeError."""
        async with self._asking:
            binary = await finish_in_thread(binary_identity, self._binary)
            if binary is None:
                raise QemuProbeError(f"there is no {self._binary}: set qemu.binary")
            known = self._known or await finish_in_thread(self._read)
            this = (boot_id(), self._user, binary, _ASKED)
            if known is None or (known.boot_id, known.user, known.binary, known.asked) != this:
                found = await self._ask()
                known = _Known(
                    boot_id=this[0],
                    user=self._user,
                    binary=binary,
                    asked=_ASKED,
                    capabilities=found,
                )
                if self._sev and found.sev is None:
                    return found
                await finish_in_thread(self._write, known)
            self._known = known
            return known.capabilities

    def _read(self) -> _Known | None:
        try:
            known = msgspec.json.decode(read_bounded(self._cache, _MAX_BYTES), type=_Known)
        except (StorageError, msgspec.DecodeError):
            return None
        return None if self._sev and known.capabilities.sev is None else known

    def _write(self, known: _Known) -> None:
        with contextlib.suppress(StorageError):  # then it is asked again at the next start
            write_atomic(self._cache, msgspec.json.encode(known))

    async def _ask(self) -> QemuCapabilities:
        with ExitStack() as held:
            ours, theirs = socket.socketpair()
            held.callback(ours.close)
            with theirs:
                process = await finish_in_thread(self._start, theirs.fileno(), held)
            ours.setblocking(False)
            try:
                async with asyncio.timeout(PROBE_S):
                    return await self._converse(ours)
            except (TimeoutError, QMPError, OSError, EOFError, LookupError, TypeError) as error:
                said = self._last_words()
                raise QemuProbeError(f"{self._binary} does not answer: {said}") from error
            finally:
                await _end(process)
                self._output.unlink(missing_ok=True)

    def _start(self, fd: int, held: ExitStack) -> Process:
        """`held` kills it. KVM if it can be had: no guest's processor ever runs."""
        argv = [
            *(self._binary, "-machine", "none", "-accel", "kvm", "-accel", "tcg"),
            *("-nodefaults", "-no-user-config", "-display", "none"),
            *("-chardev", f"socket,id=qmp,fd={fd}", "-mon", "chardev=qmp,mode=control"),
        ]
        request = StartRequest(
            name="qemu-probe", argv=argv, pass_fds=(fd,), output=self._output, user=self._user
        )
        try:
            identity = DetachedSupervisor(oom_score_adj=1000).start_here(request)
        except SupervisorError as error:
            raise QemuProbeError(f"{self._binary} cannot be started") from error
        process = Process.open(identity)
        assert process is not None, "our own child cannot be gone before we waited for it"
        held.callback(process.close)
        held.callback(process.kill)
        return process

    async def _converse(self, sock: socket.socket) -> QemuCapabilities:
        client = QMPClient("probe")
        try:
            await client.connect(sock)
            told = await client.execute("query-version")
            sev, no_sev = await _sev(client) if self._sev else (None, "")
            return QemuCapabilities(
                version=_version(told),
                objects=await _properties(client, "qom-list-properties", OBJECTS),
                devices=await _properties(client, "device-list-properties", DEVICES),
                machine=await _machine(client),
                sev=sev,
                no_sev=no_sev,
            )
        finally:
            with contextlib.suppress(QMPError, OSError, EOFError, ValueError):
                await client.disconnect()

    def _last_words(self) -> str:
        try:
            lines = self._output.read_text(errors="replace").strip().splitlines()
        except OSError:
            lines = []
        return lines[-1] if lines else "it says nothing"


def _version(told: Any) -> tuple[int, int, int]:
    qemu = told["qemu"]
    return (int(qemu["major"]), int(qemu["minor"]), int(qemu["micro"]))


async def _properties(client: QMPClient, command: str, kinds: Any) -> dict[str, tuple[str, ...]]:
    """Of each kind that it has."""
    found: dict[str, tuple[str, ...]] = {}
    for kind in kinds:
        with contextlib.suppress(ExecuteError):  # it has none of that name
            told: Any = await client.execute(command, {"typename": kind})
            found[kind] = tuple(sorted(one["name"] for one in told))
    return found


async def _machine(client: QMPClient) -> tuple[str, ...]:
    """The properties of the machine that every VM has."""
    told: Any = await client.execute("query-machines")
    kind = next((f"{one['name']}-machine" for one in told if one.get("alias") == "q35"), "")
    return (await _properties(client, "qom-list-properties", (kind,))).get(kind, ())


async def _sev(client: QMPClient) -> tuple[SevPlatform | None, str]:
    try:
        told: Any = await client.execute("query-sev-capabilities")
    except ExecuteError as error:
        return None, str(error)
    platform = SevPlatform(cbitpos=told["cbitpos"], reduced_phys_bits=told["reduced-phys-bits"])
    return platform, ""


async def _end(process: Process) -> None:
    """Have it gone, and its zombie too; one that the kernel keeps is let be."""
    process.kill()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(END_S):
            await process.wait()
            process.reap()
