"""Which ports of a loopback address QEMU is told to listen on: those that are free when it starts.

Invariant: what was chosen is on disk before QEMU is started, so that a later agent finds the guest
where it is. The file is for one boot, like the VMs.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterable
from pathlib import Path

import msgspec

from agent.enclaves.network import NetworkError
from agent.host.files import FileAbsentError, StorageError, read_bounded, write_atomic
from agent.host.listener_owners import listener_at
from agent.model.resources import Listen

FIRST_HOST_PORT = 20000
_BEYOND = 32000  # from about there on the kernel gives ports to outgoing connections
_MAX_BYTES = 4 << 20

log = logging.getLogger(__name__)


class HostPorts:
    """The first port of each address; guests have as many from there on as they need."""

    def __init__(self, file: Path | None = None) -> None:
        """`file` None: nothing outlives this object."""
        self._file = file
        self._first = _read(file) if file else {}

    def first(self, address: str) -> int:
        return self._first.get(address, FIRST_HOST_PORT)

    def choose(self, address: str, count: int) -> None:
        """Have so many free ports in a row, the first ones if they are. Raises NetworkError."""
        for first in range(FIRST_HOST_PORT, _BEYOND - count, max(1, count)):
            if _are_free(address, range(first, first + count)):
                self._keep(address, first)
                return
        at = Listen(address=address, port=FIRST_HOST_PORT)
        raise NetworkError(
            f"network.loopback_subnet: no {count} ports in a row are free on {address} from "
            f"{FIRST_HOST_PORT} to {_BEYOND}; the first is taken by "
            f"{listener_at(at) or 'a program that does not listen'}"
        )

    def _keep(self, address: str, first: int) -> None:
        if first == self.first(address):
            return
        changed = {**self._first, address: first}
        kept = {where: port for where, port in changed.items() if port != FIRST_HOST_PORT}
        if self._file is not None:
            try:
                write_atomic(self._file, msgspec.json.encode(kept))
            except StorageError as error:
                raise NetworkError(f"the ports of {address} cannot be kept") from error
        self._first = kept


def _read(file: Path) -> dict[str, int]:
    try:
        return msgspec.json.decode(read_bounded(file, _MAX_BYTES), type=dict[str, int])
    except FileAbsentError:
        return {}
    except (StorageError, msgspec.MsgspecError) as error:
        log.warning("chosen ports are not known", extra={"file": str(file), "error": str(error)})
        return {}


def _are_free(address: str, ports: Iterable[int]) -> bool:
    """Asked as QEMU will: a socket that was closed a moment ago is no obstacle."""
    for port in ports:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
                probe.listen(1)
            except OSError:
                return False
    return True
