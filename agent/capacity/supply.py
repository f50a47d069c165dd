"""What the ledger and the decision are given: the host's supply, who holds what, the question.

Pure values; the inventory and the engine fill them in.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from agent.capacity.boards import Board, Condition
from agent.capacity.groups import NumaDistances
from agent.capacity.listen_rules import ListenRules
from agent.model.enclave import Enclave
from agent.model.gpu import CcMode
from agent.model.ids import Bdf, DeploymentName, EnclaveId, LeaseId
from agent.model.reasons import Decision, Reason, Strategy
from agent.model.resources import Amounts, Demand, Listen

_OVERHEAD_FIXED_MIB = 160  # QEMU's own heap, device buffers, translated code
_OVERHEAD_SHARE = 256  # page tables on both levels: 2 × 1/512 of the guest's memory


class _Value(msgspec.Struct, frozen=True, kw_only=True):
    """Base of the values."""


def vm_memory_mib(size_mib: int) -> int:
    """What a VM costs the host: the guest's memory and the overhead of running it."""
    return size_mib + _OVERHEAD_FIXED_MIB + -(-size_mib // _OVERHEAD_SHARE)


class HostSupply(_Value, frozen=True, kw_only=True):
    """What the host has, at one moment.

    `mem_available_mib` is the kernel's MemAvailable, None if it is not known. It does not yet miss
    the memory that a VM was admitted with but has not touched; `resident_mib` says how much of an
    enclave's memory is already missing from it (0 for an enclave that is not named), so that the
    rest can be set aside. `written_mib` says the same of `disk_free_mib`. Too low a number there
    refuses too much and never admits too much.

    `addresses` are all that enclaves may have, in order of preference. `boards` are the GPUs, held
    or not; `numa_distances` is the kernel's table, a row a node. `cleaning_s`: how long a GPU is
    likely to be cleaned. `tee_ids`: how many the agent's enclaves may have together;
    `tee_ids_elsewhere`: how many others on this host use beside them; `tee_ids_each`: how many an
    enclave takes here, 0 where they are not counted.
    `foreign_listeners` are listening sockets found on the host; `programs`: whose they are, as far
    as that can be told.
    `stop_grace_s`: what a guest that hears its power button may take to power off.
    `listen_rules`: where deployments may listen.
    `listeners_by_name`: the data plane tells deployments on one listener apart by their domains.
    `evidence_demanded`: no enclave takes traffic here whose evidence is not good;
    `allow_unattested`: but for debug releases, which give none.
    `default_domain`: under which guests without a domain of their own are named.
    """

    memory_mib: int
    vcpus: int
    addresses: tuple[str, ...]
    disk_free_mib: int
    mem_available_mib: int | None = None
    reserve_memory_mib: int = 0
    reserve_vcpus: int = 0
    resident_mib: Mapping[EnclaveId, int] = {}
    written_mib: Mapping[EnclaveId, int] = {}
    tee_ids: int = 0
    tee_ids_elsewhere: int = 0
    tee_ids_each: int = 0
    boards: tuple[Board, ...] = ()
    numa_distances: NumaDistances = ()
    cleaning_s: float = 60.0
    stop_grace_s: float = 0.0
    foreign_listeners: tuple[Listen, ...] = ()
    programs: Mapping[Listen, str] = {}
    listen_rules: ListenRules = ListenRules()
    listeners_by_name: bool = False
    evidence_demanded: bool = False
    allow_unattested: bool = False
    default_domain: str | None = None
    inventory_complete: bool = True
    draining: bool = False

    def gpus(self, *conditions: Condition) -> tuple[Bdf, ...]:
        """Those in one of these conditions, by board; switches are none."""
        seats = (seat for board in self.boards for seat in board.seats)
        return tuple(seat.bdf for seat in seats if seat.condition in conditions)


class Holding(_Value, frozen=True, kw_only=True):
    """What one enclave's durable row takes.

    `replaces` names the enclaves that are stopped before this one starts, so that it takes over
    what they hold. `disk_mib` and `tee_ids` come from its revision's demand.
    """

    enclave: EnclaveId
    deployment: DeploymentName
    memory_mib: int
    vcpus: int
    address: str | None = None
    gpus: tuple[Bdf, ...] = ()
    switches: tuple[Bdf, ...] = ()
    tee_ids: int = 0
    disk_mib: int = 0
    replaces: tuple[EnclaveId, ...] = ()

    @classmethod
    def of(cls, row: Enclave, demand: Demand) -> Holding:
        """From an enclave's row and its revision's demand."""
        return cls(
            enclave=row.id,
            deployment=row.deployment,
            memory_mib=row.memory_mib,
            vcpus=row.vcpus,
            address=row.address,
            gpus=row.gpus,
            switches=row.switches,
            tee_ids=demand.tee_ids,
            disk_mib=demand.disk_mib,
            replaces=(row.replaces,) if row.replaces else (),
        )


class Question(_Value, frozen=True, kw_only=True):
    """What is to be admitted. `deployment` None: a bare demand.

    `listen_claims` are those of its revision. `own` are the deployment's enclaves on this host,
    all of which an update with an outage would stop, the one whose address is to be kept first.
    `insisted`: the strategy asked for by name. `lease`: the promise to be redeemed. `obstacles`:
    what others have against it (a release that does not verify, missing secrets); any refuses.
    `warnings` refuse nothing; they are told with whatever is decided.
    `public_certificate`: its guests ask for one at each boot, for the name that they are told.
    `guest_domain` is the name that the guest of its revision is told, None by default; of a mere
    promise of capacity there is no guest yet. `dummy_attestation`: it is told to give no evidence.
    `debug`: of a debug release, which gives no evidence.
    """

    demand: Demand
    deployment: DeploymentName | None = None
    listen_claims: tuple[str, ...] = ()
    own: tuple[EnclaveId, ...] = ()
    running_update: bool = False
    insisted: Strategy | None = None
    staging: bool = False
    lease: LeaseId | None = None
    obstacles: tuple[Reason, ...] = ()
    warnings: tuple[str, ...] = ()
    public_certificate: bool = False
    guest_domain: str | msgspec.UnsetType | None = msgspec.UNSET
    dummy_attestation: bool = False
    debug: bool = False


class Grant(_Value, frozen=True, kw_only=True):
    """Which things an admission gives, beside the amounts. `replaces`: who is stopped before.

    `gpu_mode`: the mode that its GPUs and switches are to be in.
    """

    address: str | None
    gpus: tuple[Bdf, ...]
    switches: tuple[Bdf, ...] = ()
    gpu_mode: CcMode | None = None
    replaces: tuple[EnclaveId, ...] = ()


class Admission(_Value, frozen=True, kw_only=True):
    """A decision, and what it gives; None if it refuses."""

    decision: Decision
    grant: Grant | None


def charged(demand: Demand, supply: HostSupply) -> Demand:
    """The demand with what every enclave takes on this host, whatever its release says."""
    return msgspec.structs.replace(demand, tee_ids=supply.tee_ids_each)


def cost(demand: Demand) -> Amounts:
    """What an enclave of this demand takes, in the ledger's amounts."""
    return Amounts(
        gpus=demand.gpus,
        memory_mib=vm_memory_mib(demand.memory_mib),
        vcpus=demand.vcpus,
        tee_ids=demand.tee_ids,
        addresses=demand.addresses,
        disk_mib=demand.disk_mib,
    )
