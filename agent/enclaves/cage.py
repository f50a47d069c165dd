"""What one VM's process has to do with its host; everything else is closed to it. Pure.

A supervisor renders it: as properties of a unit (`cage_unit.py`), or as an order to the program
that becomes QEMU (`cage_order.py`). Sources of the limits: docs/host.md, *The cage*.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

from agent.enclaves.spec import (
    Nic,
    TapNic,
    TdxTee,
    TeeVariant,
    UnixQuotes,
    UserNic,
    VmAccel,
    VsockQuotes,
)

# Users of VMs without systemd. No other program gives numbers out of this range by its defaults:
# containers end at 1879048191, and from 2^31 on some take a number for a negative one (systemd's
# UIDS-GIDS).
FIRST_UID = 1_900_000_000
# A group that owns nothing. A process whose groups differ when it executes cannot be dumped or
# looked into, whatever its program (execve(2), PR_SET_DUMPABLE in prctl(2)).
NOBODYS_GROUP = FIRST_UID - 1

# QEMU's own memory beside its guest's: heap, buffers, threads, page tables of both levels.
_OVERHEAD_MIB, _OVERHEAD_SHARE = 512, 128
_TRANSLATED_MIB = 1024  # what TCG keeps of translated code, at most
_TASKS = 160  # its own threads: the loop, 64 of block devices, migration, 64 more of devices

# The addresses that networks of guests are cut from, one after the other.
_SPACES = tuple(
    map(ipaddress.IPv4Network, ("10.0.0.0/8", "127.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"))
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cage:
    """`uid`: for a process that no unit gives a user. `trees`: what it executes and reads.

    `sockets`: of the host's services that it dials by name. `families`: of its sockets besides
    AF_UNIX. `sysfs`: it looks at devices of the host, and may read of them.
    """

    uid: int
    memory_max_mib: int
    tasks_max: int
    trees: tuple[Path, ...]
    own_network: bool = True
    sockets: tuple[Path, ...] = ()
    families: tuple[str, ...] = ()
    sysfs: bool = False


def uid_of(address: str) -> int:
    """The user of the VM with this IPv4 address: no two addresses have one. Raises ValueError."""
    found, offset = ipaddress.IPv4Address(address), 0
    for space in _SPACES:
        if found in space:
            return FIRST_UID + offset + int(found) - int(space.network_address)
        offset += space.num_addresses
    raise ValueError(f"{address} is no address of guests")


def memory_max_mib(size_mib: int, accel: VmAccel, *, passed: bool) -> int:
    """The most that all of a VM's process may have. `passed`: devices of the host go with it.

    A device's memory is mapped and pinned at its size; a quarter is what a host may be wrong by
    before a guest that runs is ended for it.
    """
    most = size_mib + _OVERHEAD_MIB + -(-size_mib // _OVERHEAD_SHARE)
    if accel is VmAccel.TCG:
        most += _TRANSLATED_MIB
    return most + -(-most // 4) if passed else most


def cage_of(
    *,
    address: str,
    memory_mib: int,
    vcpus: int,
    accel: VmAccel,
    tee: TeeVariant,
    nic: Nic,
    passed: bool,
    program: Path,
) -> Cage:
    """The cage of a VM. `program`: QEMU's path, without links."""
    sockets, families = _quotes(tee)
    return Cage(
        uid=uid_of(address),
        memory_max_mib=memory_max_mib(memory_mib, accel, passed=passed),
        tasks_max=vcpus + _TASKS,
        trees=trees_of(program),
        own_network=_own_network(nic),
        sockets=sockets,
        families=families if _own_network(nic) else (*families, "AF_INET"),
        sysfs=passed,
    )


def trees_of(program: Path) -> tuple[Path, ...]:
    """The system's programs and libraries, and where this one lies, if that is elsewhere."""
    system, place = Path("/usr"), program.parent
    if place.name in ("bin", "sbin") and place.parent != Path("/"):
        place = place.parent
    return (system,) if place.is_relative_to(system) else (system, place)


def _own_network(nic: Nic) -> bool:
    match nic:
        case TapNic(fd=fd):
            return fd is not None
        case UserNic():
            return False
    assert_never(nic)


def _quotes(tee: TeeVariant) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """Where a trust domain's quotes are made: a socket's path, or a family."""
    if not isinstance(tee, TdxTee):
        return (), ()
    match tee.quotes:
        case UnixQuotes(path):
            return (path,), ()
        case VsockQuotes():
            return (), ("AF_VSOCK",)
    assert_never(tee.quotes)
