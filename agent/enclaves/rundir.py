"""What one VM has in `run_dir/<id>/`: its lock, its launch record, its sockets and its files.

    lock         flock'ed by the agent, inherited by QEMU: held exactly as long as a VM may exist
    launch.json  which launch this is, and once it was started which process
    output       QEMU's stdout and stderr, bounded
    vm/          QEMU's own: the only place that it may write to (its sockets)
    root/        empty: where the root of its cage is mounted, for it alone

Invariant: whoever holds the lock is the only one that may start, or clean up after, a VM of this
enclave. An open file description holds it, and every process that inherited that description: the
kernel lets go of it when the last of them is gone, not before, whatever was killed in between.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from pathlib import Path

import msgspec

from agent.host.files import (
    StorageError,
    read_bounded,
    remove_scratch,
    storage_errors,
    write_atomic,
)
from agent.model.enclave import ProcessIdentity
from agent.model.ids import Bdf, EnclaveId

OUTPUT_LIMIT_BYTES = 256 << 10
OUTPUT_KEPT_BYTES = 64 << 10


class LaunchRecord(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """Written before the process is started, and again with its identity after.

    `address` tells whom a VM serves that no row knows; None of a launch by an older agent.
    """

    launch_uuid: str
    address: str | None = None
    simulated: bool = False
    debug_console: bool = False
    deaf: bool = False
    device_fds: dict[str, Bdf] = {}  # what QEMU calls devices that it got as descriptors
    process: ProcessIdentity | None = None


class RunDir:
    """The run directory of one enclave. On tmpfs, so its calls do not block.

    What writes raises StorageError (`disk_full` if that is why).
    """

    def __init__(self, root: Path, enclave_id: EnclaveId) -> None:
        self.path = root / enclave_id
        self.output = self.path / "output"
        self.vm = self.path / "vm"
        self.root = self.path / "root"
        self.qmp_socket = self.vm / "qmp"
        self.stop_socket = self.vm / "qmp-stop"
        self.psp_socket = self.vm / "sim-psp"
        self._lock = self.path / "lock"
        self._record = self.path / "launch.json"

    @property
    def exists(self) -> bool:
        return self.path.exists()

    def create(self) -> None:
        """Make the directory, with a part that whoever starts QEMU gives to its user."""
        with storage_errors("make", self.vm):
            # A user of QEMU's own must be able to pass through, and to see nothing.
            self.path.mkdir(mode=0o700, exist_ok=True)
            self.path.chmod(0o711)  # whatever our umask is
            self.vm.mkdir(mode=0o700, exist_ok=True)
            self.root.mkdir(mode=0o755, exist_ok=True)
            self.root.chmod(0o755)

    def take_lock(self) -> int | None:
        """The descriptor that holds the lock now; None if it is held elsewhere."""
        with storage_errors("lock", self._lock):
            fd = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                return None
            except BaseException:
                os.close(fd)
                raise
        return fd

    def is_locked(self) -> bool:
        """Whether somebody holds the lock: a VM, or a process on its way to become one."""
        if not self._lock.exists():
            return False
        fd = self.take_lock()
        if fd is None:
            return True
        os.close(fd)
        return False

    def is_held_by(self, pid: int) -> bool | None:
        """Whether this process has the lock's file open; None if that cannot be known."""
        try:
            lock = self._lock.stat()
        except FileNotFoundError:
            return None
        try:
            with os.scandir(f"/proc/{pid}/fd") as entries:
                for entry in entries:
                    with contextlib.suppress(OSError):
                        if os.path.samestat(entry.stat(), lock):
                            return True
        except PermissionError:
            return None
        except (FileNotFoundError, ProcessLookupError):
            return False
        return False

    def record(self) -> LaunchRecord | None:
        """The launch record; None if there is none, or it makes no sense."""
        try:
            return msgspec.json.decode(read_bounded(self._record, 4096), type=LaunchRecord)
        except (StorageError, msgspec.DecodeError):
            return None

    def write_record(self, record: LaunchRecord) -> None:
        """Replace the record, whole."""
        write_atomic(self._record, msgspec.json.encode(record))

    def remove_scratch(self) -> None:
        """Remove what the writing of a record left that was killed half-way."""
        if self.exists:
            remove_scratch(self.path)

    def output_tail(self, max_bytes: int = 2048) -> str:
        """The end of what QEMU printed, as text."""
        try:
            with self.output.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - max_bytes))
                said = file.read().decode("utf-8", "replace").strip()
        except FileNotFoundError:
            return ""
        record = self.record()
        for name, bdf in (record.device_fds if record else {}).items():
            said = re.sub(rf"\b{name}\b", bdf, said)
        return said

    def trim_output(self) -> None:
        """Keep the end of an output that grew too long. QEMU appends, so it goes on behind it."""
        with contextlib.suppress(OSError):
            if self.output.stat().st_size <= OUTPUT_LIMIT_BYTES:
                return
            with self.output.open("r+b") as file:
                file.seek(-OUTPUT_KEPT_BYTES, os.SEEK_END)
                kept = file.read(OUTPUT_KEPT_BYTES)
                file.truncate(0)
                file.seek(0)
                file.write(kept)

    def remove(self) -> None:
        """Delete all of it. Only when no VM can exist. Idempotent."""
        with storage_errors("remove", self.path), contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.path)
