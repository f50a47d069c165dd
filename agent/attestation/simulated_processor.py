"""Plays the secure processor of VMs under `tee: simulated`: SIMULATED — NOT CONFIDENTIAL.

It measures the bytes that a QEMU process was given (its open files and its arguments) and answers
its guest's requests with reports over them. One task a VM, for as long as the agent watches that
VM; after a restart of the agent the next one goes on, and the guest only sees a short absence.
Invariants: of what a guest sends the agent never holds more than one request, nor works for it
more often than `GAP_S` allows; what is measured belongs to the very process that listens.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from agent.attestation.simulated_chain import SimulatedChain
from agent.attestation.simulated_launch import launch_of
from agent.attestation.simulated_report import make_report
from agent.attestation.simulated_wire import (
    HEADER_BYTES,
    PAYLOAD_BYTES,
    Command,
    Status,
    WireError,
    answer,
    certificate_table,
    parse_header,
    refusal,
)
from agent.config import SIMULATED
from agent.errors import AgentError, describe
from agent.host.process import identify
from agent.host.threads import finish_in_thread
from agent.model.enclave import ProcessIdentity
from agent.model.ids import EnclaveId
from agent.model.measurement import MeasuredLaunch

log = logging.getLogger(__name__)

GAP_S = 0.02  # between answers to one guest
REST_S = 2.0  # for the rest of a request that began, and for an answer to be taken
RETRY_S = 0.05
RETRY_CAP_S = 2.0
_PEER = struct.Struct("3i")  # struct ucred: pid, uid, gid

Digest = Callable[[MeasuredLaunch], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Vm:
    """A VM that is served."""

    enclave: EnclaveId
    process: ProcessIdentity
    socket: Path

    @property
    def report_id(self) -> bytes:
        """32 bytes that follow from the process, so that a restart of the agent keeps them."""
        who = f"{self.process.boot_id}/{self.process.start_ticks}/{self.process.pid}"
        return hashlib.sha256(who.encode()).digest()


class SimulatedProcessor:
    """One for all VMs of a host. `digest` is how a launch is measured; it blocks."""

    def __init__(self, chain: SimulatedChain, digest: Digest) -> None:
        self._chain = chain
        self._digest = digest
        self._table = certificate_table(chain)

    async def serve(self, enclave_id: EnclaveId, process: ProcessIdentity, socket: Path) -> None:
        """Answer this VM's guest until it ends or we are cancelled, over as many connections as
        it takes.
        """
        vm = _Vm(enclave=enclave_id, process=process, socket=socket)
        loop = asyncio.get_running_loop()
        pause_s, told = RETRY_S, ""
        measured, measurement = False, None
        while identify(process.pid) == process:
            began = loop.time()
            try:
                with _connected(vm) as sock:
                    if not measured:
                        measurement, measured = await self._measure(vm), True
                    await self._converse(vm, measurement, sock)
            except (AgentError, OSError, EOFError) as error:
                if (problem := describe(error)) != told:
                    log.info("guest not served", extra={"enclave": vm.enclave, "error": problem})
                    told = problem
            held = loop.time() - began > RETRY_CAP_S
            pause_s = RETRY_S if held else min(pause_s * 2, RETRY_CAP_S)
            await asyncio.sleep(pause_s)

    async def _measure(self, vm: _Vm) -> bytes | None:
        """The digest of what the process was given; None, having said why, if there is none."""
        try:
            launch = launch_of(vm.process.pid)
            measurement = await finish_in_thread(self._digest, launch)
        except AgentError as error:
            log.warning(
                "launch not measured", extra={"enclave": vm.enclave, "error": describe(error)}
            )
            return None
        log.info(
            "simulated processor serves: %s",
            SIMULATED,
            extra={"enclave": vm.enclave, "measurement": measurement.hex()},
        )
        return measurement

    async def _converse(self, vm: _Vm, measurement: bytes | None, sock: socket.socket) -> None:
        """Answer until the connection ends. Raises WireError, OSError, EOFError."""
        loop = asyncio.get_running_loop()
        while True:
            command, payload = await _request(sock)
            async with _rest("the guest does not take its answer"):
                await loop.sock_sendall(sock, self._answer(vm, measurement, command, payload))
            await asyncio.sleep(GAP_S)

    def _answer(
        self, vm: _Vm, measurement: bytes | None, command: Command, payload: bytes
    ) -> bytes:
        if command is Command.CHAIN:
            return answer(self._table)
        if measurement is None:
            return refusal(Status.UNAVAILABLE)
        report = make_report(
            self._chain, report_data=payload, measurement=measurement, report_id=vm.report_id
        )
        return answer(report)


async def _request(sock: socket.socket) -> tuple[Command, bytes]:
    """The next request. Waits for ever for its first byte, and not for the others."""
    first = await _receive(sock, 1)
    async with _rest("the guest does not finish its request"):
        command = parse_header(first + await _receive(sock, HEADER_BYTES - 1))
        return command, await _receive(sock, PAYLOAD_BYTES[command])


async def _receive(sock: socket.socket, size: int) -> bytes:
    """So many bytes, and not one more. Raises EOFError."""
    loop = asyncio.get_running_loop()
    data = b""
    while len(data) < size:
        more = await loop.sock_recv(sock, size - len(data))
        if not more:
            raise EOFError("the guest's port was closed")
        data += more
    return data


@contextlib.asynccontextmanager
async def _rest(complaint: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(REST_S):
            yield
    except TimeoutError:
        raise WireError(f"{complaint} within {REST_S:g} s") from None


@contextlib.contextmanager
def _connected(vm: _Vm) -> Iterator[socket.socket]:
    """A connection to the guest's port, at the very process that is measured."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
        sock.connect(os.fspath(vm.socket))
        peer = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
        pid = _PEER.unpack(peer)[0]
        if pid != vm.process.pid:
            raise WireError(f"process {pid} listens in the place of {vm.process.pid}")
        yield sock
