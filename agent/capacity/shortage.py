"""What a demand lacks in a given room, in words and numbers."""

from __future__ import annotations

from agent.capacity.boards import Condition
from agent.capacity.groups import blame, pick
from agent.capacity.ledger import Room
from agent.capacity.supply import HostSupply, cost
from agent.model.reasons import Reason, ReasonCode
from agent.model.resources import Demand

_AMOUNTS = (
    ("memory_mib", ReasonCode.MEMORY_INSUFFICIENT, "{} MiB of memory"),
    ("vcpus", ReasonCode.VCPUS_INSUFFICIENT, "{} vCPUs"),
    ("tee_ids", ReasonCode.TEE_IDS_EXHAUSTED, "{} TEE ids"),
    ("addresses", ReasonCode.ADDRESSES_EXHAUSTED, "{} addresses for enclaves"),
    ("disk_mib", ReasonCode.DISK_INSUFFICIENT, "{} MiB of disk"),
)

_WORDS = {
    ReasonCode.GPUS_INSUFFICIENT: "",
    ReasonCode.GPUS_DIRTY: ", {} being cleaned",
    ReasonCode.GPUS_QUARANTINED: ", {} in quarantine",
    ReasonCode.MODE_SWITCH_NEEDED: " in another mode, on a board that is in use",
    ReasonCode.GPU_MODE_UNAVAILABLE: " that can be brought to the mode (enclave-agent gpus)",
    ReasonCode.IOMMU_GROUP_NOT_VIABLE: " that share an IOMMU group with another device or GPU",
    ReasonCode.GPUS_NOT_CONFIDENTIAL: "; {} cannot be confidential",
}


def shortages(demand: Demand, room: Room, supply: HostSupply) -> list[Reason]:
    """Everything that is missing, GPUs first; empty means that the demand fits.

    Memory is told with the overhead of the VM, since that is what has to be free.
    """
    needed = cost(demand)
    found = _gpu_shortage(demand, room, supply)
    for name, code, words in _AMOUNTS:
        wanted, available = getattr(needed, name), max(0, getattr(room.amounts, name))
        if wanted > available:
            detail = f"{words.format(wanted)} needed, {available} free"
            found.append(Reason(code=code, detail=detail, needed=wanted, available=available))
    return found


def _gpu_shortage(demand: Demand, room: Room, supply: HostSupply) -> list[Reason]:
    """One reason: what would mend the shortage."""
    wanted = demand.gpus
    if pick(supply.boards, wanted, room.taken) is not None:
        return []
    code = blame(supply.boards, wanted, room.taken)
    more = _WORDS[code]
    if code is ReasonCode.GPUS_DIRTY:
        more = more.format(_count(supply, room, Condition.CLEANING))
    elif code is ReasonCode.GPUS_QUARANTINED:
        more = more.format(_count(supply, room, Condition.QUARANTINED))
    elif code is ReasonCode.GPUS_NOT_CONFIDENTIAL:
        more = more.format(_unfit(supply))
    free = room.amounts.gpus
    detail = f"{wanted} GPUs needed, {free} free{more}"
    return [Reason(code=code, detail=detail, needed=wanted, available=free)]


def _count(supply: HostSupply, room: Room, condition: Condition) -> int:
    return len([gpu for gpu in supply.gpus(condition) if gpu not in room.taken])


def _unfit(supply: HostSupply) -> str:
    """The kinds of GPU that no confidential guest can have."""
    kinds = {
        board.part or "a GPU of its age"
        for board in supply.boards
        if any(seat.condition is Condition.UNFIT for seat in board.seats)
    }
    return ", ".join(sorted(kinds))
