"""A cage as the order to the program that becomes QEMU (`vm_start.py`). Reads no more than links
and device numbers of the host.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agent.enclaves.cage import NOBODYS_GROUP, Cage
from agent.enclaves.cage_filter import PROGRAM_FD, filter_program

# Beside trees of programs: what the dynamic loader wants, and where /usr names a link.
LOADER = ("/etc/ld.so.cache", "/etc/alternatives")
# Names of the root that lead into /usr, where the two were merged.
ROOT_NAMES = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")


def order_in_unit(cage: Cage) -> dict[str, Any]:
    """Systemd has made the room, and says who it is: the rest."""
    return _order(cage, room=None, own_group=-1, limits={})


def order_as_root(
    cage: Cage, *, root: Path, writable: Sequence[Path], devices: Sequence[Path]
) -> dict[str, Any]:
    """All of it. `root`: an empty directory of this VM's own, to be mounted upon.

    The user's number of processes, threads with them, is limited: nobody else is that user.
    """
    trees = [*map(str, cage.trees), *LOADER, *(name for name in ROOT_NAMES if _is_tree(name))]
    room = {
        "root": str(root),
        "own_network": cage.own_network,
        "links": {name: str(Path(name).readlink()) for name in ROOT_NAMES if _is_link(name)},
        "reads": [*trees, *(["/sys"] if cage.sysfs else [])],
        "writes": [str(path) for path in (*writable, *cage.sockets)],
        "devices": _numbers(devices),
        "uid": cage.uid,
        "groups": [],
    }
    limits = {"RLIMIT_NPROC": cage.tasks_max, "RLIMIT_CORE": 0, "RLIMIT_MSGQUEUE": 0}
    if cage.sysfs:
        limits["RLIMIT_MEMLOCK"] = -1  # a passed-through device pins all of the guest's memory
    return _order(cage, room=room, own_group=cage.uid, limits=limits)


def _order(
    cage: Cage, *, room: Mapping[str, Any] | None, own_group: int, limits: Mapping[str, int]
) -> dict[str, Any]:
    return {
        "room": room,
        "groups": [own_group, NOBODYS_GROUP],
        "filter": filter_program(cage.families, PROGRAM_FD).hex(),
        "program_fd": PROGRAM_FD,
        "limits": dict(limits),
    }


def _is_link(name: str) -> bool:
    return Path(name).is_symlink()


def _is_tree(name: str) -> bool:
    path = Path(name)
    return path.is_dir() and not path.is_symlink()


def _numbers(devices: Sequence[Path]) -> dict[str, int]:
    """Those that are there, by their name below /dev."""
    return {
        str(path.relative_to("/dev")): path.stat().st_rdev for path in devices if path.exists()
    }
