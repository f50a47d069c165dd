"""The first program of a VM: it is handed the VM's descriptors, puts on its cage, becomes QEMU.

systemd starts a unit's program with descriptors 0, 1 and 2 alone, and so does the agent itself. So
0 is a socket to the agent, over which come the others, to be put at the numbers that QEMU's
arguments name.

It is run by its path, without the package, and imports what starts at once. Order of the talk:

    program → agent     HERE; the kernel adds who it is: the first that anybody knows of its user
    agent → program     {argv, environment, numbers, cage?} and the descriptors, a pipe's first
    (exec)              closes the pipe; what kept it from being done is written there first

`cage` (`cage_order.py` makes it) has `room`: what is to be done as root and no unit does, or null;
`groups`: the process's own and the one that it executes with; `filter` in hex, which lets
`program_fd` alone be executed; `limits`: of resources, by name.
"""

import contextlib
import fcntl
import json
import os
import resource
import socket
import struct
import sys

HERE = b"here"
MAX_BYTES = 160 << 10
MAX_DESCRIPTORS = 128
_PATIENCE_S = 60

# linux/sched.h, linux/mount.h, linux/prctl.h, linux/fcntl.h; calls without a wrapper by number
_CLONE_NEWNS, _CLONE_NEWUTS, _CLONE_NEWIPC, _CLONE_NEWNET = (1 << n for n in (17, 26, 27, 30))
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REMOUNT = 1, 2, 4, 8, 32
_MS_BIND, _MS_REC, _MS_PRIVATE, _MNT_DETACH = 4096, 16384, 1 << 18, 2
_PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 22, 24, 38, 47
_SECCOMP_MODE_FILTER, _PR_CAP_AMBIENT_CLEAR_ALL = 2, 4
_AT_FDCWD, _AT_EMPTY_PATH, _AT_RECURSIVE = -100, 0x1000, 0x8000
_CAPABILITY_VERSION, _CAPSET = 0x20080522, 126  # linux/capability.h
_EXECVEAT, _MOUNT_SETATTR, _PIVOT_ROOT = 322, 442, 155
_MOUNT_ATTR_RDONLY, _MOUNT_ATTR_NOSUID, _MOUNT_ATTR_NODEV = 1, 2, 4
_IS = (0x15, 0, 1)  # the instruction that compares: code, and how far to jump if so, or not
_NODES = {"null": 3, "zero": 5, "full": 7, "random": 8, "urandom": 9}  # of major number 1


def main() -> int:
    """Does not return where all goes well."""
    with socket.socket(fileno=os.dup(0)) as agent:
        agent.settimeout(_PATIENCE_S)
        agent.send(HERE)
        data, descriptors, _, _ = socket.recv_fds(agent, MAX_BYTES, MAX_DESCRIPTORS)
    if not descriptors:
        sys.stderr.write("the agent went away before it handed the VM over\n")
        return 1
    pipe, *inherited = descriptors
    try:
        order = json.loads(data)
        pipe, *inherited = _apart(descriptors, above=max([2, *order["numbers"]]))
        for number, descriptor in zip(order["numbers"], inherited, strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)
        if order.get("cage"):
            _become_caged(order, order["cage"])
        _no_input()
        program = _find(order["argv"][0], order["environment"])
        os.execve(program, order["argv"], order["environment"])  # noqa: S606 - its very purpose
    except (OSError, ValueError, KeyError) as error:
        with contextlib.suppress(OSError):
            os.write(pipe, str(error).encode())
    return 1


def _apart(descriptors: list[int], above: int) -> list[int]:
    """The same, under numbers that are nobody's: so none is overwritten by another's place."""
    moved = [fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, above + 1) for one in descriptors]
    for one in descriptors:
        os.close(one)
    return moved


def _no_input() -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)


def _find(program: str, environment: dict[str, str]) -> str:
    """Its path. Raises FileNotFoundError."""
    if os.sep in program:
        return program
    for directory in os.get_exec_path(environment):
        path = os.path.join(directory, program)  # noqa: PTH118 - pathlib takes longer to import
        if os.access(path, os.X_OK):
            return path
    raise FileNotFoundError(f"there is no {program}")


def _become_caged(order: dict, cage: dict) -> None:  # type: ignore[type-arg]
    """Does not return where all goes well. Raises OSError."""
    kernel = _Kernel()
    if cage["room"]:
        kernel.enter(cage["room"])
    _no_input()
    program = _find(order["argv"][0], order["environment"])
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = cage["program_fd"]
    number = most if hard == resource.RLIM_INFINITY else min(most, hard - 1)
    resource.setrlimit(resource.RLIMIT_NOFILE, (number + 1, hard))
    opened = os.open(program, os.O_RDONLY | os.O_CLOEXEC)
    if fcntl.fcntl(opened, fcntl.F_DUPFD_CLOEXEC, number) != number:
        raise OSError(f"descriptor {number} is taken")
    os.close(opened)
    with open("/proc/self/coredump_filter", "w") as kept:  # noqa: PTH123
        kept.write("0")
    kernel.drop_capabilities(cage["groups"], cage["room"])
    for name, limit in cage["limits"].items():
        try:
            resource.setrlimit(getattr(resource, name), (limit, limit))
        except ValueError as error:
            raise OSError(f"{name} {limit}: {error}") from error
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, number))
    program_only, this_only = (struct.pack("=HBBI", *_IS, one) for one in (most, number))
    parts = bytes.fromhex(cage["filter"]).split(program_only)
    if len(parts) != 2:
        raise ValueError(f"the filter does not name descriptor {most} once")
    kernel.filter(this_only.join(parts))
    kernel.execute(number, order["argv"], order["environment"])


class _Kernel:
    """The calls that Python has no name for. Each raises OSError, with what it was for."""

    def __init__(self) -> None:
        import ctypes  # takes longer to import than all else

        self._ctypes = ctypes
        self._libc = ctypes.CDLL(None, use_errno=True)

    def _done(self, result: int, what: str) -> None:
        if result != 0:
            number = self._ctypes.get_errno()
            raise OSError(number, f"{what}: {os.strerror(number)}")

    def enter(self, room: dict) -> None:  # type: ignore[type-arg]
        """Namespaces of its own, and a root that holds what the room names and nothing else."""
        spaces = _CLONE_NEWNS | _CLONE_NEWUTS | _CLONE_NEWIPC
        spaces |= _CLONE_NEWNET if room["own_network"] else 0
        self._done(self._libc.unshare(spaces), "unshare")
        self._mount("", "/", "", _MS_REC | _MS_PRIVATE)
        ours = os.umask(0o022)  # whoever is in the room passes through its directories
        root = room["root"]
        self._mount("tmpfs", root, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=0755,size=1M")
        for name in ("proc", "dev"):
            os.mkdir(f"{root}/{name}", 0o755)  # noqa: PTH102
        for name, to in room["links"].items():
            os.symlink(to, f"{root}{name}")  # noqa: PTH211 - pathlib takes longer to import
        for path in room["reads"]:
            self._bind(path, root, read_only=True)
        for path in room["writes"]:
            self._bind(path, root, read_only=False)
        kept = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
        self._mount("proc", f"{root}/proc", "proc", kept, "hidepid=invisible,subset=pid")
        self._make_devices(f"{root}/dev", room["devices"], room["uid"])
        os.umask(ours)
        os.chdir(root)
        here = b"."
        self._done(self._libc.syscall(_PIVOT_ROOT, here, here), "pivot_root")
        self._done(self._libc.umount2(here, _MNT_DETACH), "leave the host's root")
        os.chdir("/")
        self._mount("", "/", "", _MS_REMOUNT | _MS_RDONLY | _MS_NOSUID | _MS_NODEV)

    def _mount(self, source: str, target: str, kind: str, flags: int, data: str = "") -> None:
        words = [one.encode() or None for one in (source, target, kind, data)]
        done = self._libc.mount(*words[:3], self._ctypes.c_ulong(flags), words[3])
        self._done(done, f"mount {target}")

    def _bind(self, path: str, root: str, *, read_only: bool) -> None:
        """What is not there is left out; what is there lies at the same place in the room."""
        if not os.path.exists(path):  # noqa: PTH110
            return
        there = f"{root}{path}"
        if os.path.isdir(path):  # noqa: PTH112
            os.makedirs(there, 0o755, exist_ok=True)  # noqa: PTH103
        else:
            os.makedirs(os.path.dirname(there), 0o755, exist_ok=True)  # noqa: PTH103, PTH120
            os.close(os.open(there, os.O_CREAT | os.O_WRONLY, 0o644))
        self._mount(path, there, "", _MS_BIND | _MS_REC)
        wanted = _MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NODEV | (_MOUNT_ATTR_RDONLY if read_only else 0)
        attributes = (self._ctypes.c_uint64 * 4)(wanted, 0, 0, 0)
        arguments = (_AT_FDCWD, there.encode(), _AT_RECURSIVE, attributes)
        size = self._ctypes.sizeof(attributes)
        self._done(self._libc.syscall(_MOUNT_SETATTR, *arguments, size), f"close {there}")

    def _make_devices(self, directory: str, devices: dict[str, int], uid: int) -> None:
        """Nodes of the room's own: the VM's devices are its user's, whoever has the host's."""
        flags = _MS_NOSUID | _MS_NOEXEC
        self._mount("tmpfs", directory, "tmpfs", flags, "mode=0755,size=64k")
        for name, minor in _NODES.items():
            os.mknod(f"{directory}/{name}", 0o020666, os.makedev(1, minor))
            os.chmod(f"{directory}/{name}", 0o666)  # noqa: PTH101, S103 - our umask
        for path, number in devices.items():
            there = f"{directory}/{path}"
            os.makedirs(os.path.dirname(there), 0o755, exist_ok=True)  # noqa: PTH103, PTH120
            os.mknod(there, 0o020600, number)
            os.chown(there, uid, uid)
        self._mount("", directory, "", flags | _MS_REMOUNT | _MS_RDONLY)

    def drop_capabilities(self, groups: list[int], room: dict | None) -> None:  # type: ignore[type-arg]
        """Every one, for ever; whoever executes with two groups cannot be looked into."""
        own, executing = groups
        for capability in range(64):
            self._libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)  # up to the last there is
        if room:
            os.setgroups(room["groups"])
        own = os.getgid() if own < 0 else own
        os.setresgid(own, executing, own)
        if room:
            os.setresuid(room["uid"], room["uid"], room["uid"])
        clear = self._libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
        self._done(clear, "clear ambient capabilities")
        header = struct.pack("=Ii", _CAPABILITY_VERSION, 0)
        none = bytes(24)  # of two halves: effective, permitted, inheritable
        self._done(self._libc.syscall(_CAPSET, header, none), "give capabilities away")
        self._done(self._libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no new privileges")

    def filter(self, program: bytes) -> None:
        """Not to be taken off again."""
        kept = self._ctypes.create_string_buffer(program, len(program))
        where = self._ctypes.addressof(kept)
        given = struct.pack("@HP", len(program) // 8, where)  # struct sock_fprog
        done = self._libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, given)
        self._done(done, "set the filter of system calls")

    def execute(self, number: int, argv: list[str], environment: dict[str, str]) -> None:
        """The program that is open at this number. Returns only by raising."""
        strings = self._ctypes.c_char_p
        words = [one.encode("utf-8", "surrogateescape") for one in argv]
        values = [f"{name}={value}".encode() for name, value in environment.items()]
        given = (strings * (len(words) + 1))(*words, None)
        around = (strings * (len(values) + 1))(*values, None)
        arguments = (number, b"", given, around, _AT_EMPTY_PATH)
        self._done(self._libc.syscall(_EXECVEAT, *arguments), f"execute {argv[0]}")


if __name__ == "__main__":
    sys.exit(main())
