"""What must hold of a simulated host at every moment, also between a crash and the restart."""

from __future__ import annotations

from collections.abc import Iterator

from agent.capacity.ledger import room
from agent.enclaves.port import VmPhase
from agent.model.enclave import Enclave, Lifecycle
from agent.model.lease import ClaimKind
from agent.model.reasons import Strategy
from agent.updates.admission import holdings
from agent.updates.gpus import recorded
from tests.fakes.simulated_host import NAME, SimulatedHost


def broken(host: SimulatedHost) -> list[str]:
    """Every invariant of the domain that does not hold, in words."""
    rows = host.read(lambda tx: tx.enclaves())
    return [
        *_vms(host, rows),
        *_shared(host, rows),
        *_promised(host),
        *_data_plane(host),
        *_refuses(host, rows),
        *_update(host),
    ]


def _vms(host: SimulatedHost, rows: list[Enclave]) -> Iterator[str]:
    """No VM that is not recorded, none twice, and none missing that nobody meant to end."""
    recorded = {row.id: row for row in rows}
    for key, vm in host.vms.items():
        row = recorded.get(key)
        if row is None:
            yield f"VM {key} is not recorded"
        elif row.lifecycle is Lifecycle.PLANNED:
            yield f"VM {key} was launched without a recorded intent"
        elif vm.launch_uuid != row.launch_uuid and vm.phase is not VmPhase.EXITED:
            yield f"VM {key} runs as another launch than the one recorded"
    for row in rows:  # one that was never launched did not come up
        lost = row.id not in host.vms and row.launch_uuid not in host.ended
        if row.lifecycle is Lifecycle.RUNNING and row.launched_at is not None and lost:
            yield f"VM {row.id} was stopped without a recorded intent"


def _shared(host: SimulatedHost, rows: list[Enclave]) -> Iterator[str]:
    together = [row for row in rows if row.replaces is None]
    if len({row.address for row in together}) != len(together):
        yield "an address belongs to two"
    if sum(row.memory_mib for row in rows if row.id in host.vms) > host.memory_mib:
        yield "more memory is in use than there is"


def _promised(host: SimulatedHost) -> Iterator[str]:
    """What is held and what was promised is there, all of it, at once."""
    now = host.clock.now()
    amounts, holders = host.read(
        lambda tx: (
            room(recorded(tx, host.supply()), holdings(tx), tx.leases(), now).amounts,
            [row.id for row in tx.enclaves()] + [row.id for row in tx.leases()],
        )
    )
    if min(amounts.memory_mib, amounts.vcpus, amounts.gpus) < 0:
        yield f"more is promised than there is: {amounts}"
    claims = host.read(lambda tx: tx.claims())
    for claim in claims:
        if claim.kind in (ClaimKind.GPU, ClaimKind.ADDRESS) and claim.holder not in holders:
            yield f"{claim.kind} {claim.key} is held by {claim.holder}, who is not there"


def _data_plane(host: SimulatedHost) -> Iterator[str]:
    """At most one target by construction; it must be the one decided, or the one before."""
    deployment = host.read(lambda tx: tx.deployment(NAME))
    if deployment is None or host.data_plane is None:
        return
    generation, target = host.data_plane
    if generation > deployment.route.generation:
        yield "the data plane is ahead of what was decided"
    if generation == deployment.route.generation and target != deployment.route.enclave:
        yield "the data plane has another target than the one decided"


def _refuses(host: SimulatedHost, rows: list[Enclave]) -> Iterator[str]:
    """While the one that serves lives, a running blue_green keeps a target in force."""
    update = host.read(lambda tx: tx.running_update(NAME))
    deployment = host.read(lambda tx: tx.deployment(NAME))
    if update is None or deployment is None or update.strategy is not Strategy.BLUE_GREEN:
        return
    for row in rows:
        vm = host.vms.get(row.id)
        lives = vm is not None and vm.phase is VmPhase.RUNNING
        active = row.slot is deployment.active_slot and row.lifecycle is Lifecycle.RUNNING
        if active and lives and not deployment.relaunches and deployment.route.enclave is None:
            yield "a blue_green refuses connections on purpose"


def _update(host: SimulatedHost) -> Iterator[str]:
    update = host.read(lambda tx: tx.running_update(NAME))
    if update is not None and (update.status is None or update.finished_at is not None):
        yield "an update runs and is finished"
