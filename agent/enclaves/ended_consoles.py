"""Consoles of enclaves that are gone: kept for who asks why, few and short.

Of each deployment the newest, and of all so many: whatever is older goes. A console is moved here
whole (a rename), then cut to its end, so that a crash in between loses nothing of it. An image
that prints nothing leaves nothing. Only root and the agent's own user can read them, as before.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
from pathlib import Path

import msgspec

from agent.enclaves.console import ConsoleLog
from agent.host.files import StorageError, read_bounded, remove_scratch, write_atomic
from agent.model.enclave import Enclave
from agent.model.ended_console import EndedConsole
from agent.model.ids import DeploymentName, EnclaveId

log = logging.getLogger(__name__)

OF_ONE = 3
OF_ALL = 64
KEPT_BYTES = 256 << 10
_ABOUT = "about.json"
_ENCLAVE_ID = re.compile(r"[a-z2-7]{8}")


class _About(msgspec.Struct, frozen=True, kw_only=True):
    """Whose a console is, written at each launch.

    `number`: its place among those that ended. 0: only the moment of its last byte tells, which a
    wall clock that was set has wrong.
    """

    deployment: str
    slot: str
    revision: int
    tag: str
    number: int = 0


class EndedConsoles:
    """Those under `state_dir`, and whose the consoles of those that run will be.

    Nobody else writes to its directories. What is torn by a crash is not kept; nothing else is
    lost by one.
    """

    def __init__(self, state_dir: Path) -> None:
        self._directory = state_dir / "ended-consoles"
        self._owners = state_dir / "console-owners"

    def mark(self, enclave: Enclave, tag: str) -> None:
        """Say whose console this will be. One that cannot be marked is only not kept."""
        about = _About(
            deployment=enclave.deployment, slot=enclave.slot, revision=enclave.revision, tag=tag
        )
        try:
            self._owners.mkdir(parents=True, exist_ok=True, mode=0o700)
            (self._owners / enclave.id).write_bytes(msgspec.json.encode(about))
        except OSError as error:
            log.warning("console not marked", extra={"enclave": enclave.id, "error": str(error)})

    def marked(self) -> set[EnclaveId]:
        """The enclaves whose console is not taken yet."""
        return {EnclaveId(path.name) for path in _named(self._owners)}

    def take(self, directory: Path, enclave_id: EnclaveId) -> None:
        """Keep the console in `directory`, or remove it if nobody could want it. Idempotent.

        Where it cannot be kept (a full disk, say) it is removed.
        """
        owner, about = self._owners / enclave_id, directory / _ABOUT
        try:
            if directory.is_dir() and owner.exists():
                owner.rename(about)
            if about.exists() and ConsoleLog(directory).tail(1):
                self._directory.mkdir(exist_ok=True, mode=0o700)
                kept = self._directory / enclave_id
                shutil.rmtree(kept, ignore_errors=True)
                remove_scratch(directory)  # of a death in the midst of this
                self._number(about)
                directory.rename(kept)
                self.tidy()
        except (OSError, StorageError) as error:
            log.warning("console not kept", extra={"enclave": enclave_id, "error": str(error)})
        shutil.rmtree(directory, ignore_errors=True)
        with contextlib.suppress(OSError):
            owner.unlink()

    def tail(self, enclave_id: EnclaveId, max_bytes: int) -> bytes | None:
        """The newest of it; None: none is kept of this enclave."""
        path = self._directory / enclave_id
        return ConsoleLog(path).tail(max_bytes) if path.is_dir() else None

    def listed(self, deployment: DeploymentName | None = None) -> list[EndedConsole]:
        """The newest first."""
        found = [(self._about(path), self._read(path)) for path in _named(self._directory)]
        rows = [
            (about.number, one.ended_at, one.enclave, one)
            for about, one in found
            if about and one and deployment in (None, one.deployment)
        ]
        return [one for *_, one in sorted(rows, key=lambda row: row[:3], reverse=True)]

    def tidy(self) -> None:
        """Cut each to its end, and remove those that are too many or tell not whose they are."""
        for path in _named(self._directory):
            _shorten(path)
            if self._read(path) is None:
                shutil.rmtree(path, ignore_errors=True)
        seen: dict[str, int] = {}
        for n, one in enumerate(self.listed()):
            seen[one.deployment] = seen.get(one.deployment, 0) + 1
            if n >= OF_ALL or seen[one.deployment] > OF_ONE:
                shutil.rmtree(self._directory / one.enclave, ignore_errors=True)

    def _number(self, path: Path) -> None:
        """Say that it is the newest. Where that finds no room the moments must do."""
        about = self._about(path.parent)
        known = (self._about(other) for other in _named(self._directory))
        newest = max((one.number for one in known if one), default=0)
        if about is not None:
            numbered = msgspec.structs.replace(about, number=newest + 1)
            with contextlib.suppress(StorageError):
                write_atomic(path, msgspec.json.encode(numbered))

    def _about(self, directory: Path) -> _About | None:
        try:
            return msgspec.json.decode(read_bounded(directory / _ABOUT, 4096), type=_About)
        except (StorageError, msgspec.DecodeError):
            return None

    def _read(self, path: Path) -> EndedConsole | None:
        about = self._about(path)
        try:
            log_file = (path / "console.log").stat()
        except OSError:
            return None
        if about is None:
            return None
        return EndedConsole(
            enclave=EnclaveId(path.name),
            deployment=DeploymentName(about.deployment),
            slot=about.slot,
            revision=about.revision,
            tag=about.tag,
            ended_at=log_file.st_mtime,
            bytes=log_file.st_size,
        )


def _named(directory: Path) -> list[Path]:
    """What is called like an enclave there."""
    with contextlib.suppress(FileNotFoundError):
        return [one for one in directory.iterdir() if _ENCLAVE_ID.fullmatch(one.name)]
    return []


def _shorten(directory: Path) -> None:
    """One file of at most KEPT_BYTES, as old as its last byte."""
    newest, older = directory / "console.log", directory / "console.log.1"
    try:
        size = newest.stat().st_size
        if not older.exists() and size <= KEPT_BYTES:
            return
        printed_at = newest.stat().st_mtime
        shorter = directory / "shorter"
        shorter.touch(mode=0o600)
        shorter.write_bytes(ConsoleLog(directory).tail(KEPT_BYTES))
        os.utime(shorter, (printed_at, printed_at))
        shorter.replace(newest)
        older.unlink(missing_ok=True)
    except OSError as error:
        log.warning("console not cut", extra={"enclave": directory.name, "error": str(error)})
