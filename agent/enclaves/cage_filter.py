"""The filter over system calls of a caged QEMU, as the kernel takes it (seccomp(2)). Pure.

It answers with an error and never kills: a library that tries a newer call and would do without it
goes on (ENOSYS), and what a guest makes QEMU attempt fails (EPERM). It denies what QEMU's own
`-sandbox` denies, which ends the process instead, and more. QEMU is executed by one descriptor,
whose number nothing can have afterwards, since it is beyond the limit of descriptors.

Sources: the kernel's arch/x86/entry/syscalls/syscall_64.tbl for the numbers (which never change),
include/uapi/linux/{filter,seccomp,sched}.h, and QEMU's softmmu/qemu-seccomp.c.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable, Iterator

# The descriptor that is executed, and so the limit of QEMU's: an SEV-SNP guest of 256 processors
# with 18 disks takes 10,000. Nothing else that the filter compares with has this number, because
# who may not raise limits puts a smaller one in its place.
PROGRAM_FD = 60_000

_ARCH_X86_64 = 0xC000003E
_KNOWN_UNTIL = 462  # of the table in kernel 6.9; what comes later is a newer call
_X32 = 0x40000000
_NR, _ARCH, _ARGS = 0, 4, 16  # of struct seccomp_data
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_LOAD, _JUMP_EQUAL, _JUMP_ABOVE, _AND, _RETURN = 0x20, 0x15, 0x35, 0x54, 0x06
_INSTRUCTION = struct.Struct("=HBBI")

_CLONE, _CLONE3, _SOCKET, _SOCKETPAIR, _EXECVE, _EXECVEAT = 56, 435, 41, 53, 59, 322
_PRCTL, _PRLIMIT, _IOCTL, _PERSONALITY = 157, 302, 16, 135
_CLONE_THREAD = 0x00010000
_CLONE_NAMESPACES = 0x7E020080
_PR_SET_DUMPABLE = 4
_TIOCSTI = 0x5412
_FAMILIES = {"AF_UNIX": 1, "AF_INET": 2, "AF_VSOCK": 40}

_DENIED = {
    "processes": (57, 58, 101, 310, 311, 312, 424, 434, 438, 440, 448),
    # fork vfork ptrace process_vm_readv process_vm_writev kcmp pidfd_send_signal pidfd_open
    # pidfd_getfd process_madvise process_mrelease
    "mounts": (155, 161, 165, 166, 272, 308, 428, 429, 430, 431, 432, 433, 442, 457, 458),
    # pivot_root chroot mount umount2 unshare setns open_tree move_mount fsopen fsconfig fsmount
    # fspick mount_setattr statmount listmount
    "users": (105, 106, 113, 114, 116, 117, 119, 122, 123, 126),
    # setuid setgid setreuid setregid setgroups setresuid setresgid setfsuid setfsgid capset
    "kernel": (
        163,
        167,
        168,
        169,
        170,
        171,
        172,
        173,
        174,
        175,
        176,
        246,
        313,
        320,
        321,
        298,
        323,
    ),
    # acct swapon swapoff reboot sethostname setdomainname iopl ioperm create_module init_module
    # delete_module kexec_load finit_module kexec_file_load bpf perf_event_open userfaultfd
    "clocks": (159, 164, 227, 305),
    # adjtimex settimeofday clock_settime clock_adjtime
    "keys and logs": (103, 248, 249, 250),
    # syslog add_key request_key keyctl
    "files by handle, quotas, devices": (133, 259, 179, 443, 212, 300, 301, 303, 304),
    # mknod mknodat quotactl quotactl_fd lookup_dcookie fanotify_init fanotify_mark
    # name_to_handle_at open_by_handle_at
    "obsolete": (134, 136, 139, 153, 154, 156, 177, 178, 180, 181, 182, 183, 184, 185, 205, 211),
    # uselib ustat sysfs vhangup modify_ldt _sysctl get_kernel_syms query_module nfsservctl
    # getpmsg putpmsg afs_syscall tuxcall security set_thread_area get_thread_area
    "resources": (141, 142, 144, 160, 203, 251, 256, 279, 314),
    # setpriority sched_setparam sched_setscheduler setrlimit sched_setaffinity ioprio_set
    # migrate_pages move_pages sched_setattr
}
_NOT_HERE = (425, 426, 427, _CLONE3)  # io_uring_setup io_uring_enter io_uring_register


def filter_program(families: Iterable[str], program_fd: int) -> bytes:
    """The instructions. `families`: of sockets, besides AF_UNIX.

    `program_fd`: nothing but the descriptor of this number can be executed.
    """
    allowed = {_FAMILIES[name] for name in ("AF_UNIX", *families)}
    return b"".join(
        (
            *_arch(),
            *_by_argument(_CLONE, 0, _threads_only()),
            *_by_argument(_SOCKET, 0, _one_of(sorted(allowed))),
            *_by_argument(_SOCKETPAIR, 0, _one_of([_FAMILIES["AF_UNIX"]])),
            *_by_argument(_PRCTL, 0, _none_of([_PR_SET_DUMPABLE])),
            *_by_argument(_IOCTL, 1, _none_of([_TIOCSTI])),
            *_by_argument(_PERSONALITY, 0, _one_of([0, 0xFFFFFFFF])),
            *_by_argument(_PRLIMIT, 2, _null()),
            *_answer(_EXECVE),
            *_by_argument(_EXECVEAT, 0, _one_of([program_fd])),
            *(part for one in _NOT_HERE for part in _answer(one, errno.ENOSYS)),
            *(part for some in _DENIED.values() for one in some for part in _answer(one)),
            _op(_JUMP_ABOVE, _KNOWN_UNTIL, 0, 1),
            _error(errno.ENOSYS),
            _op(_RETURN, _ALLOW),
        )
    )


def _op(code: int, value: int, then: int = 0, otherwise: int = 0) -> bytes:
    return _INSTRUCTION.pack(code, then, otherwise, value)


def _error(number: int) -> bytes:
    return _op(_RETURN, _ERRNO | number)


def _arch() -> Iterator[bytes]:
    """Calls of other kinds (32 bit, x32) have other numbers: there are none. Leaves the number."""
    yield _op(_LOAD, _ARCH)
    yield _op(_JUMP_EQUAL, _ARCH_X86_64, 1, 0)
    yield _error(errno.EPERM)
    yield _op(_LOAD, _NR)
    yield _op(_JUMP_ABOVE, _X32, 0, 1)
    yield _error(errno.EPERM)


def _answer(call: int, number: int = errno.EPERM) -> Iterator[bytes]:
    yield _op(_JUMP_EQUAL, call, 0, 1)
    yield _error(number)


def _by_argument(call: int, argument: int, judged: list[bytes]) -> Iterator[bytes]:
    """For this call, `judged` decides over the lower half of an argument; it must return."""
    yield _op(_JUMP_EQUAL, call, 0, 1 + len(judged))
    yield _op(_LOAD, _ARGS + 8 * argument)
    yield from judged


def _one_of(values: Iterable[int]) -> list[bytes]:
    allowing = [part for one in values for part in (_op(_JUMP_EQUAL, one, 0, 1), _pass())]
    return [*allowing, _error(errno.EPERM)]


def _none_of(values: Iterable[int]) -> list[bytes]:
    denying = [part for one in values for part in _answer(one)]
    return [*denying, _pass()]


def _null() -> list[bytes]:
    """Of a pointer both halves count."""
    return [
        _op(_JUMP_EQUAL, 0, 1, 0),
        _error(errno.EPERM),
        _op(_LOAD, _ARGS + 8 * 2 + 4),
        *_one_of([0]),
    ]


def _threads_only() -> list[bytes]:
    return [
        _op(_AND, _CLONE_THREAD | _CLONE_NAMESPACES),
        *_one_of([_CLONE_THREAD]),
    ]


def _pass() -> bytes:
    return _op(_RETURN, _ALLOW)
