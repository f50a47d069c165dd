"""The userspace data plane, as the agent holds it: a client of the traffic proxy's process.

The proxy is started when it is missing and otherwise adopted; it outlives the agent. If it dies,
it is started again at once and resumes its routes by itself (its connections are lost).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from agent.config_limits import DEFAULT_LIMITS, LimitsConfig
from agent.host.commands import CommandError, RunCommand, run_command
from agent.host.process import Process, find_by_option, identify
from agent.host.threads import finish_in_thread
from agent.model.enclave import Endpoint
from agent.model.ids import DeploymentName
from agent.model.resources import Listen
from agent.traffic.occupied import occupant
from agent.traffic.port import (
    PortTakenError,
    Refused,
    RouteOrder,
    StaleGenerationError,
    TrafficError,
    Unheld,
)
from agent.traffic.proxy import messages
from agent.traffic.proxy.messages import ProxyReply, Request

_LIMITS_SINCE = 2  # of the protocol
_ANSWER_S = 15.0
_START_S = 15.0
_RESTART_PAUSE_S = 1.0
_log = logging.getLogger(__name__)
_Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class UserspaceTraffic:
    """`command` starts a proxy; `--socket`, `--state` and `--log` are added to it."""

    kind = "userspace"

    def __init__(
        self,
        socket: Path,
        state_file: Path,
        log_file: Path,
        *,
        command: Sequence[str] | None = None,
        limits: LimitsConfig = DEFAULT_LIMITS,
        answer_s: float = _ANSWER_S,
        run_command: RunCommand = run_command,
    ) -> None:
        self._socket = socket
        self._state_file = state_file
        self._start_command = [*(command or _proxy_command())]
        self._start_command += ["--socket", str(socket), "--state", str(state_file)]
        self._start_command += ["--log", str(log_file)]
        self._run = run_command
        self._answer_s = answer_s
        self._limits = limits
        self._unlimited: str | None = None  # why the proxy does not keep to them
        self._lock = asyncio.Lock()
        self._streams: _Streams | None = None
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Adopt the proxy that runs, or start one."""
        await self._call(messages.Version())
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch(), name="traffic-proxy-watch")

    @property
    def was_started(self) -> bool:
        """Whether a proxy is likely to run already, of an earlier agent."""
        return self._socket.exists()

    async def apply(self, order: RouteOrder) -> None:
        await self._call(messages.Apply(order))

    async def remove(self, deployment: DeploymentName) -> None:
        await self._call(messages.Remove(deployment))

    async def observe(self) -> Mapping[DeploymentName, RouteOrder]:
        answer = await self._call(messages.Observe())
        return {order.deployment: order for order in answer.orders}

    async def connections(self, endpoint: Endpoint) -> int:
        return (await self._call(messages.Connections(endpoint))).count or 0

    async def reset(self, endpoint: Endpoint) -> int:
        return (await self._call(messages.Reset(endpoint))).count or 0

    async def hold_ports(self) -> Mapping[Listen, Unheld]:
        """The proxy does, while an order is there; one whose ports are taken is refused."""
        return {}

    async def refused(self) -> Refused:
        """By deployments."""
        if self._unlimited is not None:
            return Refused(unlimited=self._unlimited)
        return Refused(counts=(await self._call(messages.Refused())).refused)

    def refusal(self, listen: Listen) -> str | None:
        """None: IPv6 is served too."""
        return None

    async def close(self) -> None:
        """The proxy runs on."""
        await self._stop_watching()
        async with self._lock:
            await self._hang_up()

    async def shutdown(self) -> None:
        """Uninstall: end the proxy with all its connections, forget its routes. Idempotent."""
        await self._stop_watching()
        async with self._lock:
            await self._hang_up()
            with contextlib.suppress(FileNotFoundError, ConnectionError):
                self._streams = await self._connect()
                await self._end(await self._ask(messages.Version()))
            await self._hang_up()
            self._state_file.unlink(missing_ok=True)

    async def kill(self) -> None:
        """End a proxy that does not answer, with all its connections; its routes stay recorded."""
        path = str(self._socket)
        for pid in (await finish_in_thread(find_by_option, "--socket", [path]))[path]:
            found = identify(pid)
            process = Process.open(found) if found is not None else None
            if process is not None:
                process.kill()
                process.close()

    async def _end(self, proxy: ProxyReply) -> None:
        """Ask it to end, and wait until it has. Raises TrafficError, ConnectionError."""
        found = identify(proxy.pid or 0)
        process = Process.open(found) if found is not None else None
        await self._ask(messages.Shutdown())
        if process is None:
            return
        try:
            async with asyncio.timeout(_ANSWER_S):
                await process.wait()
        except TimeoutError as error:
            raise TrafficError(f"the traffic proxy (process {proxy.pid}) does not end") from error
        finally:
            process.close()

    async def _call(self, request: Request) -> ProxyReply:
        """Ask, starting a proxy if there is none. Every request may be asked twice."""
        async with self._lock:
            try:
                answer = await self._ask_anew(request)
            except OSError:
                await self._start_proxy()
                try:
                    answer = await self._ask_anew(request)
                except OSError as error:
                    raise TrafficError("the traffic proxy does not answer") from error
        if answer.error is not None and answer.taken is not None:
            # We may look at other users' processes, which the proxy itself may not.
            program = await finish_in_thread(occupant, answer.taken)
            raise PortTakenError(answer.error, answer.taken, program)
        if answer.error is not None:
            raise (StaleGenerationError if answer.stale else TrafficError)(answer.error)
        return answer

    async def _ask_anew(self, request: Request) -> ProxyReply:
        """Over the connection that there is, or a new one if that has ended. Raises OSError."""
        if self._streams is not None:
            with contextlib.suppress(ConnectionError):
                return await self._ask(request)
        self._streams = await self._connect()
        await self._tell_limits()
        return await self._ask(request)

    async def _tell_limits(self) -> None:
        """A proxy that an earlier version started knows none, and is let run: it has connections.

        Raises OSError, TrafficError.
        """
        proxy = await self._ask(messages.Version())
        why: str | None = "an earlier version of the agent started it"
        if (proxy.protocol or 1) >= _LIMITS_SINCE:
            why = (await self._ask(messages.SetLimits(self._limits))).error
        self._unlimited = why and (
            f"the traffic proxy (process {proxy.pid}) does not keep to the limits: {why}; end it "
            "when its connections may be reset, and another is started at once"
        )
        if self._unlimited:
            _log.warning("%s", self._unlimited)

    async def _connect(self) -> _Streams:
        return await asyncio.open_unix_connection(self._socket, limit=messages.LINE_LIMIT)

    async def _ask(self, request: Request) -> ProxyReply:
        """Give an interrupted conversation up: its answer would pass for the next one's."""
        assert self._streams is not None
        reader, writer = self._streams
        whole = False
        try:
            async with asyncio.timeout(self._answer_s):
                writer.write(msgspec.json.encode(request) + b"\n")
                await writer.drain()
                line = await reader.readline()
            if not line.endswith(b"\n"):
                raise ConnectionResetError("the traffic proxy hung up")
            answer = msgspec.json.decode(line, type=ProxyReply)
            whole = True
        except TimeoutError as error:
            raise TrafficError(
                f"the traffic proxy did not answer in {self._answer_s:g} s"
            ) from error
        except msgspec.MsgspecError as error:
            raise TrafficError("the traffic proxy's answer is not understood") from error
        finally:
            if not whole:
                await self._hang_up()
        return answer

    async def _hang_up(self) -> None:
        if self._streams is not None:
            _, writer = self._streams
            self._streams = None
            await _close(writer)

    async def _start_proxy(self) -> None:
        """Returns when a proxy serves the socket; its start is bounded, its life is not."""
        try:
            started = await self._run(self._start_command, timeout_s=_START_S)
        except CommandError as error:
            raise TrafficError("the traffic proxy could not be started") from error
        if started.status != 0:
            raise TrafficError(f"the traffic proxy did not start: {started.complaint}")
        _log.info("traffic proxy started socket=%s", self._socket)

    async def _watch(self) -> None:
        """Wait for the proxy's end, and start it again."""
        while True:
            try:
                reader, writer = await self._connect()
                try:
                    await reader.read()
                finally:
                    await _close(writer)
                _log.warning("traffic proxy ended socket=%s", self._socket)
                await self._call(messages.Version())
            except (OSError, TrafficError) as error:
                _log.warning("traffic proxy cannot be reached error=%s", error)
                await asyncio.sleep(_RESTART_PAUSE_S)
                with contextlib.suppress(TrafficError):
                    await self._call(messages.Version())

    async def _stop_watching(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watching
            self._watching = None


def _proxy_command() -> tuple[str, ...]:
    """Under the name that people look for, where it is installed beside the interpreter."""
    script = Path(sys.executable).with_name("enclave-agent")
    if script.exists():
        return (str(script), "traffic-proxy")
    return (sys.executable, "-m", "agent.traffic.proxy")


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
