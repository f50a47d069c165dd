"""A program in QEMU's place: attempts what a QEMU that a guest has taken over would attempt.

It imports nothing of ours, since it is executed in a cage by a descriptor. What came of each
attempt is on stdout, as one line of JSON; then it does what its argument says:

    end        nothing more
    stay       waits
    eat        takes half a GiB of memory
    crowd      starts threads until it is refused, 300 at most, and tells how many there were

    python -I -S /proc/self/fd/N WHAT OTHER_PID OTHER_SOCKET OTHER_UID
"""

# ruff: noqa: PTH120, PTH123, PTH208
import ctypes
import errno
import json
import os
import signal
import socket
import sys
import threading
import time

libc = ctypes.CDLL(None, use_errno=True)
SYSCALLS = {
    "ptrace": (101, 16),  # PTRACE_ATTACH
    "read_memory_of": (310,),  # process_vm_readv
    "pidfd_open": (434,),
    "mount": (165, 0, 0, 0, 0, 0),
    "new_namespace": (272, 0x10000000),  # unshare(CLONE_NEWUSER)
    "become_root": (105, 0),
    "take_capabilities": (126, 0, 0),
    "raise_limits": (302, 0, 7, ctypes.create_string_buffer(b"\xff" * 16), 0),
    "be_dumpable": (157, 4, 1, 0, 0, 0),
    "load_a_module": (313, 0, b"", 0),
    "run_in_the_kernel": (321, 0, 0, 0),  # bpf
    "make_a_device": (133, b"/vm-node", 0o020666, os.makedev(1, 1)),
    "set_the_clock": (227, 0, 0),
    "execute_by_handle": (322, -100, b"/usr/bin/true", 0, 0, 0),
}
NEWER = {"clone3": 435, "io_uring_setup": 425, "not_yet_known": 600}


def call(number, *arguments):
    if libc.syscall(number, *arguments) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def attempts(other, path, uid):
    found = {name: lambda what=what: call(*what) for name, what in SYSCALLS.items()}
    found |= {name: lambda nr=nr: call(nr, 0, 0) for name, nr in NEWER.items()}
    found["ptrace"] = lambda: call(101, 16, other, 0, 0)
    found["read_memory_of"] = lambda: call(310, other, 0, 0, 0, 0, 0)
    found["pidfd_open"] = lambda: call(434, other, 0)

    def open_(name, flags=os.O_RDWR):
        return lambda: os.close(os.open(name, flags))

    def dial():
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.connect(path)

    def internet(kind, family=socket.AF_INET):
        return lambda: socket.socket(family, kind).close()

    def neighbours():
        seen = [
            name for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()
        ]
        if not seen:
            raise OSError(errno.ENOENT, "nobody else")

    def descend():
        for place, names, files in os.walk("/"):
            if place.startswith(("/usr", "/proc", "/lib", "/bin", "/sbin", "/dev")):
                names.clear()
                continue
            for name in (*names, *files):
                if name in ("lock", "launch.json", "shadow", "agent.yaml", "agent.sock"):
                    return
        raise OSError(errno.ENOENT, "none of the host's files")

    def write_somewhere():
        """In any directory but its VM's own, and its own of /proc."""
        for place, names, _ in os.walk("/"):
            if place in ("/usr", "/proc", "/sys") or place == own:
                names.clear()
                continue
            try:
                os.close(os.open(f"{place}/written", os.O_WRONLY | os.O_CREAT))
            except OSError:
                continue
            raise AssertionError(place)
        raise OSError(errno.EROFS, "nowhere")

    own = os.path.dirname(path).replace("jailed02", "jailed03")
    found |= {
        "write_elsewhere": write_somewhere,
        "anothers_qmp": dial,
        "anothers_descriptors": lambda: os.listdir(f"/proc/{other}/fd"),
        "anothers_memfd": open_(f"/proc/{other}/fd/4", os.O_RDONLY),
        "anothers_memory": open_(f"/proc/{other}/mem", os.O_RDONLY),
        "anothers_end": lambda: os.kill(other, signal.SIGKILL),
        "see_other_processes": neighbours,
        "the_hosts_files": descend,
        "own_memory": open_("/proc/self/mem"),
        "physical_memory": open_("/dev/mem", os.O_RDONLY),
        "taps": open_("/dev/net/tun"),
        "sysfs": lambda: os.close(os.open("/sys/kernel/mm/ksm/run", os.O_WRONLY)),
        "sysctl": open_("/proc/sys/kernel/core_pattern", os.O_WRONLY),
        "write_the_root": open_("/written", os.O_WRONLY | os.O_CREAT),
        "write_the_programs": open_("/usr/bin/written", os.O_WRONLY | os.O_CREAT),
        "raw_socket": internet(socket.SOCK_RAW),
        "packet_socket": internet(socket.SOCK_RAW, socket.AF_PACKET),
        "internet": internet(socket.SOCK_STREAM),
        "netlink": internet(socket.SOCK_RAW, socket.AF_NETLINK),
        "fork": os.fork,
        "execute": lambda: os.execv("/usr/bin/true", ["true"]),
        "anothers_user": lambda: os.setresuid(uid, uid, uid),
    }
    return found


def told(other, path, uid):
    outcomes = {}
    for name, attempt in attempts(other, path, uid).items():
        try:
            attempt()
        except AssertionError as where:
            outcomes[name] = f"done in {where}"
        except OSError as error:
            outcomes[name] = errno.errorcode.get(error.errno, str(error.errno))
        else:
            outcomes[name] = "done"
    return outcomes


def state():
    with open("/proc/self/status") as file:
        status = dict(line.split(":", 1) for line in file if ":" in line)
    with open("/proc/self/coredump_filter") as file:
        core_filter = file.read().strip()
    return {
        "uid": os.getuid(),
        "capabilities": {name: status[name].strip() for name in status if name.startswith("Cap")},
        "no_new_privileges": status["NoNewPrivs"].strip(),
        "dumpable": libc.prctl(3, 0, 0, 0, 0),  # PR_GET_DUMPABLE
        "core_filter": core_filter,
        "root": sorted(os.listdir("/")),
        "nodes": sorted(os.listdir("/dev")),
    }


def crowd():
    waiting = threading.Event()
    started = 0
    try:
        while started < 300:
            threading.Thread(target=waiting.wait, daemon=True).start()
            started += 1
    except RuntimeError as error:
        refused = str(error)
    else:
        refused = ""
    print(json.dumps({"threads": started, "refused": refused}), flush=True)
    waiting.set()


def eat():
    kept = []
    while len(kept) < 32:  # where nothing is limited it ends by itself
        kept.append(b"x" * (16 << 20))


def main(what, other, path, uid):
    print(json.dumps({"outcomes": told(int(other), path, int(uid)), "state": state()}), flush=True)
    if what == "stay":
        time.sleep(600)
    elif what == "eat":
        eat()
    elif what == "crowd":
        crowd()


if __name__ == "__main__":
    main(*sys.argv[1:])
