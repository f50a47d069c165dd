"""Health as the update engine sees it: a published verdict an enclave, always being renewed."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

import msgspec

from agent.host.wake import KeyedWake
from agent.model.clock import Instant
from agent.model.enclave import Endpoint, ProcessIdentity
from agent.model.ids import DeploymentName, EnclaveId
from agent.model.resources import Listen
from agent.model.revision import Fault
from agent.probes.guest_metrics import MetricsAccess


class TcpCheck(msgspec.Struct, frozen=True, kw_only=True):
    """A guest port that must accept, and where it is reached."""

    guest_port: int
    endpoint: Endpoint


class ProbeTarget(msgspec.Struct, frozen=True, kw_only=True):
    """What to probe of an enclave. `https` is guest port 443; `process` runs its VM.

    `health_path`: of the workload; None if none of its paths can be asked. `path_named`: the
    deployment named it. `path_guarded`: the guest's shim wants a key for it. `host`: the name to
    ask for, as in `Host`; None for the guest's address.
    `bound_key`: the only TLS key (SHA-256, hex) that it may show, once one was bound.
    `binds_itself`: nothing is claimed on this host, so that two rounds in a row that pass wholly,
    over connections of their own, bind the key that both were made over.
    `metrics_access`: of a guest that was given a METRICS_API_KEY. Never log it.
    """

    enclave: EnclaveId
    launch_uuid: str
    https: Endpoint
    health_path: str | None
    path_named: bool = False
    path_guarded: bool = False
    host: str | None = None
    tcp: tuple[TcpCheck, ...]
    container_names: tuple[str, ...]
    bound_key: str | None = None
    binds_itself: bool = False
    metrics_access: MetricsAccess | None = None
    process: ProcessIdentity | None = None


class ProbeView(msgspec.Struct, frozen=True, kw_only=True):
    """One probe: consecutive passes so far (`passing`) of the `needed`, and its last answer.

    `unknown`: the last answer tells nothing of what was asked about; other probes decide.
    """

    name: str
    passing: int
    needed: int
    failing: int
    last: str | None
    unknown: bool = False


class HealthView(msgspec.Struct, frozen=True, kw_only=True):
    """A published snapshot.

    `boot_complete`: every boot stage is ok, skipped or warning. `boot_failed`: the stage that
    failed, with its detail. `healthy`: None until each probe has given a verdict; True when all
    pass (with hysteresis). `healthy_since`: since when all pass, fixed while it is healthy; the
    results that made the verdict lie after it, so that a dwell counts from here. `flaps`: how
    often it became unhealthy again. `fault`: the newest failing probe with its answer; of a guest
    whose VM's process is ending, that end (`qemu_exit`), whichever probe fails of it.
    `spki_sha256`: of the key that the guest's TLS showed on the newest connection (hex).
    `bound_spki_sha256`: of the one that is bound; `another_key`: another one was shown for longer
    than a probe may fail, which makes the enclave unhealthy.
    `stage`: the boot stage under way when the stages were last seen, `stage_since` when it was
    first seen to be, `stage_before` the one that was done before it. `gpus_attested`: the stage of
    that name is ok. `progressed_at`: when a stage or substage was last seen to be finished.
    `shut_since`: since when the guest's port has kept every caller out, without a break.
    """

    launch_uuid: str
    answered: bool = False
    boot_stages: dict[str, Any] | None = None
    boot_complete: bool = False
    boot_failed: str | None = None
    healthy: bool | None = None
    healthy_since: Instant | None = None
    flaps: int = 0
    fault: Fault | None = None
    probes: tuple[ProbeView, ...] = ()
    containers: dict[str, Any] | None = None
    metrics: dict[str, Any] | None = None
    spki_sha256: str | None = None
    bound_spki_sha256: str | None = None
    another_key: bool = False
    stage: str | None = None
    stage_before: str | None = None
    stage_since: Instant | None = None
    gpus_attested: bool = False
    progressed_at: Instant | None = None
    shut_since: Instant | None = None

    @property
    def falters(self) -> bool:
        """Whether the newest answer to a probe was a failure, whatever the verdict is yet."""
        return any(probe.failing for probe in self.probes)


class Probes(Protocol):
    """All probers of this host: one task an enclave."""

    changed: KeyedWake[EnclaveId]  # rung at every change of a view that somebody would act upon

    def watch(self, target: ProbeTarget) -> None:
        """Begin, or go on with, probing. A target with another launch uuid starts afresh."""
        ...

    def unwatch(self, enclave_id: EnclaveId) -> None: ...

    def view(self, enclave_id: EnclaveId) -> HealthView | None: ...

    def begin_anew(self) -> None:
        """Take nothing that was seen so far for what is: ask all of them again, as from now on.

        That a guest had booted, and the key that is bound to it, stay known.
        """
        ...

    async def serves_booted(self, endpoint: Endpoint) -> bool:
        """Whether the guest there says now, over a fresh connection, that its boot is complete.

        Takes no longer than a probe may. It counts into no view: nobody need be watched.
        """
        ...

    async def close(self) -> None: ...


class OutsideListener(msgspec.Struct, frozen=True, kw_only=True):
    """A listener of the host, and what a client finds there.

    `tls`: it speaks TLS, asked for the name `server_name` (None: for none). `keys`: the TLS keys
    (SHA-256, hex) that the enclave is known to show; any will do while none is known.
    """

    listen: Listen
    tls: bool = False
    server_name: str | None = None
    keys: frozenset[str] = frozenset()


class OutsideTarget(msgspec.Struct, frozen=True, kw_only=True):
    """What is in force for a deployment: which decision, to which enclave, by which listeners."""

    generation: int
    enclave: EnclaveId
    listeners: tuple[OutsideListener, ...]


class ListenerReach(msgspec.Struct, frozen=True, kw_only=True):
    """Whether clients reach a listener.

    `reached`: None while it cannot be told; False after as many failures in a row as of any probe.
    `since`: since when it is so. `problem`: of the newest attempt, None if it was answered.
    `by_outside`: asked from outside the host's own stack; otherwise from this host itself, by
    which no forwarding is seen. `doubtful`: it may be told another way soon.
    """

    listen: Listen
    reached: bool | None
    since: Instant | None
    problem: str | None
    by_outside: bool
    doubtful: bool


class OutsideView(msgspec.Struct, frozen=True, kw_only=True):
    """Of one deployment, under the decision `generation`.

    `reached_before`: listeners that clients reached while they were sent to another enclave, just
    before. `host_suspect`: others of this host are not reached either, or its network is known to
    be at fault: then what is found says nothing of the enclave.
    """

    generation: int
    listeners: tuple[ListenerReach, ...]
    reached_before: frozenset[Listen] = frozenset()
    host_suspect: bool = False

    @property
    def unreached(self) -> tuple[ListenerReach, ...]:
        """Those that clients do not reach."""
        return tuple(one for one in self.listeners if one.reached is False)

    @property
    def doubtful(self) -> bool:
        return any(one.doubtful for one in self.listeners)


class Outside(Protocol):
    """Asks the listeners of deployments as their clients would."""

    changed: KeyedWake[DeploymentName]  # as that of Probes

    def watch(self, name: DeploymentName, target: OutsideTarget) -> None:
        """Begin, or go on with, asking. Another decision starts afresh."""
        ...

    def unwatch(self, name: DeploymentName) -> None: ...

    def view(self, name: DeploymentName) -> OutsideView | None: ...

    async def run(self) -> None:
        """For ever."""
        ...


class NobodyOutside:
    """Where listeners are not asked (`probes.outside: never`)."""

    def __init__(self) -> None:
        self.changed = KeyedWake[DeploymentName]()

    def watch(self, name: DeploymentName, target: OutsideTarget) -> None: ...

    def unwatch(self, name: DeploymentName) -> None: ...

    def view(self, name: DeploymentName) -> OutsideView | None:
        return None

    async def run(self) -> None:
        """There is nothing to be done."""
        await asyncio.Event().wait()
