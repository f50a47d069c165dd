"""The conversation with one QEMU over QMP, kept up for as long as the VM is ours.

    dialling --(greeting, query-uuid, query-status)--> connected --(loss, no answer)--> dialling

Invariants: nobody ever waits for a QEMU without a deadline; a connection counts only once the VM
behind it has said that it is the expected launch; the guest's end is reported also if it happened
while nobody was connected; one that hangs degrades what needs it and nothing else.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import logging
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qemu.qmp import QMPClient, QMPError
from qemu.qmp.protocol import Runstate

from agent.errors import AgentError

log = logging.getLogger(__name__)

# What goes wrong on a connection is ours to tell; the library's own words would be said twice.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL + 1)

COMMAND_S = 5.0
DIAL_S = 5.0
FIRST_RETRY_S = 0.01
FIRST_RETRY_CAP_S = 0.05
RETRY_S = 0.2
RETRY_CAP_S = 5.0

GUEST_SHUTDOWN = "guest-shutdown"
GUEST_RESET = "guest-reset"
GUEST_PANICKED = "guest-panicked"
QEMU_EXIT = "qemu-exit"

# Run states of a guest that does not go on by itself, with what is told to a person.
_ENDED_STATES = {
    "shutdown": (GUEST_SHUTDOWN, "the guest ended (powered off or reset)"),
    "guest-panicked": (GUEST_PANICKED, "the guest's kernel panicked"),
    "internal-error": (QEMU_EXIT, "QEMU could not run the guest any further (internal error)"),
}
_SHUTDOWN_REASONS = {
    "guest-shutdown": (GUEST_SHUTDOWN, "the guest powered off"),
    "guest-reset": (GUEST_RESET, "the guest reset itself"),
    "guest-panic": (GUEST_PANICKED, "the guest's kernel panicked"),
}


_WORD = re.compile(r"[A-Za-z0-9-]{1,64}")
_MAX_SAID = 300
_CRASH_KERNEL = "the guest's kernel panicked, and a crash kernel took over"


def _word(said: object) -> str:
    """A word of QEMU's to be told: QEMU may be the guest's by now."""
    return said if isinstance(said, str) and _WORD.fullmatch(said) else "(no word of QEMU's)"


class MonitorError(AgentError):
    """QEMU's monitor is not reachable, does not answer in time, or refused a command."""

    @property
    def code(self) -> str:
        return "qmp_unavailable"


@dataclass(frozen=True, slots=True)
class GuestEnd:
    """The guest ended; QEMU stays, paused. `reason` is one of VmView's exit reasons."""

    reason: str
    detail: str


class Monitor:
    """One QEMU's monitor. `report` is called once for every observation of the guest's end."""

    def __init__(
        self, path: Path, launch_uuid: str, report: Callable[[GuestEnd], None], *, name: str = ""
    ) -> None:
        self._path = path
        self._launch_uuid = launch_uuid
        self._report = report
        self._name = name
        self._client: QMPClient | None = None
        self._socket: socket.socket | None = None
        self._up = asyncio.Event()
        self._was_up = False
        self._keeper: asyncio.Task[None] | None = None
        self._looks: set[asyncio.Task[None]] = set()
        self._problem = "never connected"

    @property
    def connected(self) -> bool:
        return self._client is not None

    def start(self) -> None:
        """Begin to connect, and to connect again whenever the connection is lost."""
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._keep(), name=f"monitor {self._name}")

    async def wait_up(self, deadline_s: float) -> None:
        """Wait until connected. Raises MonitorError at the deadline; goes on trying then."""
        try:
            async with asyncio.timeout(deadline_s):
                await self._up.wait()
        except TimeoutError:
            raise MonitorError(f"no QMP within {deadline_s:g} s: {self._problem}") from None

    async def execute(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        deadline_s: float = COMMAND_S,
    ) -> Any:
        """Run one command. Raises MonitorError, having hung up if the deadline was missed."""
        if self._client is None:
            raise MonitorError(f"{command}: no connection: {self._problem}")
        return await self._execute(self._client, command, arguments, deadline_s)

    async def read_ring(self, chardev: str, max_bytes: int) -> bytes:
        """Consume bytes of a ring character device. Raises MonitorError."""
        arguments = {"device": chardev, "size": max_bytes, "format": "base64"}
        answer = await self.execute("ringbuf-read", arguments)
        try:
            return base64.b64decode(answer, validate=True)
        except (TypeError, ValueError) as error:
            raise MonitorError("ringbuf-read: the answer is not base64") from error

    async def close(self) -> None:
        """Let go of the connection. QEMU runs on."""
        tasks = [*self._looks, *([self._keeper] if self._keeper else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._keeper = None

    async def _keep(self) -> None:
        pause_s, cap_s = FIRST_RETRY_S, FIRST_RETRY_CAP_S
        while True:
            try:
                async with asyncio.timeout(DIAL_S):
                    client = await self._dial()
            except TimeoutError:
                self._note(f"no answer within {DIAL_S:g} s")
            except MonitorError as error:
                self._note(str(error))
            except Exception as error:  # noqa: BLE001 - a defect must not end it for good
                self._note(f"{type(error).__name__}: {error}")
            else:
                await self._attend(client)
                pause_s, cap_s = RETRY_S, RETRY_CAP_S
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, cap_s)

    def _note(self, problem: str) -> None:
        if problem != self._problem and self._was_up:
            log.warning("monitor lost", extra={"enclave": self._name, "error": problem})
        self._problem = problem

    async def _attend(self, client: QMPClient) -> None:
        """Hold a connection until it is lost or we are told to close."""
        self._client = client
        self._was_up = True
        self._up.set()
        try:
            while client.runstate is Runstate.RUNNING:
                await client.runstate_changed()
            self._problem = "QEMU closed the connection"
        finally:
            self._client = None
            self._up.clear()
            await self._disconnect(client)

    async def _dial(self) -> QMPClient:
        self._socket = _connect(self._path)
        client = QMPClient(self._name or None)
        # The library's own listener would keep every event for ever; ours keeps none.
        client.events.event_filter = functools.partial(self._hear, client)
        try:
            await client.connect(self._socket)
            await self._verify(client)
        except (QMPError, OSError, EOFError) as error:
            await self._disconnect(client)
            raise MonitorError(f"no QMP session: {error}") from error
        except BaseException:
            await self._disconnect(client)
            raise
        return client

    async def _verify(self, client: QMPClient) -> None:
        """The VM behind the socket must be the expected launch; see what became of its guest."""
        answer = await self._execute(client, "query-uuid", None, COMMAND_S)
        found = answer.get("UUID") if isinstance(answer, dict) else None
        if found != self._launch_uuid:
            raise MonitorError(f"another VM answers: {_word(found)}")
        await self._see_status(client)

    async def _see_status(self, client: QMPClient) -> None:
        status = await self._execute(client, "query-status", None, COMMAND_S)
        state = status.get("status") if isinstance(status, dict) else None
        if isinstance(state, str) and state in _ENDED_STATES:
            self._report(GuestEnd(*_ENDED_STATES[state]))

    async def _execute(
        self,
        client: QMPClient,
        command: str,
        arguments: Mapping[str, object] | None,
        deadline_s: float,
    ) -> Any:
        try:
            async with asyncio.timeout(deadline_s):
                return await client.execute(command, arguments)
        except TimeoutError:
            self._problem = f"{command}: no answer within {deadline_s:g} s"
            self._hang_up()
            raise MonitorError(self._problem) from None
        except (QMPError, OSError, EOFError) as error:
            said = str(error)[:_MAX_SAID].encode("ascii", "replace").decode()
            raise MonitorError(f"{command}: {said}") from error

    async def _see_why_it_stopped(self, client: QMPClient) -> None:
        with contextlib.suppress(MonitorError):  # it is seen when the connection is made again
            await self._see_status(client)

    def _hear(self, client: QMPClient, event: Mapping[str, Any]) -> bool:
        """Take note of an event. Always False: the library shall not keep it."""
        told = event.get("data")
        data = told if isinstance(told, dict) else {}
        match event.get("event"):
            case "SHUTDOWN" if data.get("guest"):
                reason = _word(data.get("reason"))
                known = _SHUTDOWN_REASONS.get(
                    reason, (GUEST_SHUTDOWN, f"the guest ended: {reason}")
                )
                self._report(GuestEnd(*known))
            case "GUEST_PANICKED":
                self._report(GuestEnd(*_ENDED_STATES["guest-panicked"]))
            case "GUEST_CRASHLOADED":  # the machine goes on, and not for what it was launched for
                self._report(GuestEnd(GUEST_PANICKED, _CRASH_KERNEL))
            case "STOP":
                look = asyncio.create_task(self._see_why_it_stopped(client))
                self._looks.add(look)
                look.add_done_callback(self._looks.discard)
            case _:
                pass
        return False

    def _hang_up(self) -> None:
        """Cut the line, so that nothing in the library can wait for the other side."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    async def _disconnect(self, client: QMPClient) -> None:
        self._hang_up()
        ending = asyncio.create_task(_collect(client))
        try:
            await asyncio.shield(ending)
        except asyncio.CancelledError:
            # Left half-way, the library would complain of what nobody collected.
            await asyncio.wait((ending,))
            raise
        finally:
            if self._socket is not None:
                self._socket.close()
                self._socket = None


async def _collect(client: QMPClient) -> None:
    """End the session. Whatever ended it before is raised once more; it was told already."""
    with contextlib.suppress(QMPError, OSError, EOFError, ValueError):
        await client.disconnect()


def _connect(path: Path) -> socket.socket:
    """A connected, non-blocking socket; raises MonitorError at once if nobody listens."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setblocking(False)
    try:
        sock.connect(str(path))
    except OSError as error:
        sock.close()
        raise MonitorError(f"cannot connect to {path}: {error.strerror}") from error
    return sock
