"""Enclaves: one VM that runs one revision; its durable row, its spec and its identity."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from agent.model.clock import Instant
from agent.model.evidence_edition import FIRST_EVIDENCE_EDITION
from agent.model.gpu import CcMode
from agent.model.ids import Bdf, DeploymentName, EnclaveId
from agent.model.revision import Slot


class ProcessIdentity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which process, beyond doubt: pid, its start time in clock ticks since boot, and the boot."""

    pid: int
    start_ticks: int
    boot_id: str


class Lifecycle(StrEnum):
    """The durable life of an enclave's row: what we last meant to do with it."""

    PLANNED = "planned"
    LAUNCHING = "launching"
    RUNNING = "running"
    STOPPING = "stopping"


class StopStage(StrEnum):
    """How far the stop of an enclave is. Established connections are delivered until it is cut."""

    FINISH = "finish"  # its guest is asked to power off, and given the time for it
    CUT = "cut"  # what is open to it still is being reset
    END = "end"  # its VM is being ended, and all of it removed


class Stopping(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The stop of an enclave: its stage, and since when it is there."""

    stage: StopStage
    since: Instant


class EnclaveState(StrEnum):
    """What a user sees of an enclave."""

    LAUNCHING = "launching"
    BOOTING = "booting"
    RUNNING = "running"
    UNHEALTHY = "unhealthy"
    DRAINING = "draining"
    STOPPING = "stopping"
    LOST = "lost"


class Enclave(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The durable row. `launch_uuid` names one start of the VM (QEMU's -uuid).

    `address` is this enclave's own IPv4 address: the guest's on a tap network, a loopback address
    of the host in user mode. `replaces` names the enclave whose resources this one inherits in a
    stop_then_start: the two never run together. `switches` go with the GPUs of a whole board;
    `gpu_mode` is the mode that all of them are to be in. `evidence_edition`: by which defaults its
    evidence is judged, in every launch of it. `ports_by_board`: a trust domain's root ports are
    where its board's layout has them; rows of before that keep the machine that they were launched
    with, and so the register that was endorsed for it. `boot_ended`: this launch ended in its
    boot, and whose doing that may be is noted. `stopping`: how far its stop is, while `lifecycle`
    says that it is stopped.
    """

    id: EnclaveId
    deployment: DeploymentName
    slot: Slot
    revision: int
    lifecycle: Lifecycle
    launch_uuid: str
    address: str
    gpus: tuple[Bdf, ...] = ()
    switches: tuple[Bdf, ...] = ()
    gpu_mode: CcMode | None = None
    ports_by_board: bool = False
    memory_mib: int
    vcpus: int
    replaces: EnclaveId | None = None
    process: ProcessIdentity | None = None
    spki_sha256: str | None = None
    created_at: Instant
    launched_at: Instant | None = None
    evidence_edition: int = FIRST_EVIDENCE_EDITION
    boot_ended: bool = False
    stopping: Stopping | None = None


class Endpoint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, order=True):
    """Where the host reaches a guest's port: host address and TCP port."""

    address: str
    port: int
