"""What must hold of a simulated host at every moment, also between a crash and the restart."""

from __future__ import annotations

from collections.abc import Iterator

from agent.capacity.ledger import room
from agent.enclaves.port import VmPhase
from agent.model.enclave import Enclave, Lifecycle
from agent.model.lease import ClaimKind
from agent.model.reasons import Strategy
from agent.model.revision import Wish
from agent.model.update import Decided
from agent.updates.admission.gpus import recorded
from agent.updates.admission.judging import holdings
from agent.updates.planner.transitions import CANCELLED_AFTER_STOP as CANCELLED
from simulator.simulated_host import NAME, SimulatedHost


def broken(host: SimulatedHost) -> list[str]:
    """Every invariant of the domain that does not hold, in words."""
    rows = host.read(lambda tx: tx.enclaves())
    return [
        *_vms(host, rows),
        *_shared(host, rows),
        *_promised(host),
        *_data_plane(host, rows),
        *_refuses(host, rows),
        *_updates(host),
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


def _data_plane(host: SimulatedHost, rows: list[Enclave]) -> Iterator[str]:
    """At most one target by construction; it must be the one decided, or the one before.

    Nobody is sent to an enclave that we stop, or that never ran: whoever is in force ended by
    itself at worst, until it is noticed.
    """
    deployment = host.read(lambda tx: tx.deployment(NAME))
    if deployment is None or host.data_plane is None:
        return
    generation, target = host.data_plane
    if generation > deployment.route.generation:
        yield "the data plane is ahead of what was decided"
    if generation == deployment.route.generation and target != deployment.route.enclave:
        yield "the data plane has another target than the one decided"
    row = next((row for row in rows if row.id == target), None)
    if target is not None and (row is None or row.lifecycle is not Lifecycle.RUNNING):
        yield f"in force is {target}, which is {row.lifecycle if row else 'not recorded'}"
    if row is not None and not _lives(host, row) and row.launch_uuid not in host.ended:
        yield f"in force is {target}, whose VM was stopped"


def _lives(host: SimulatedHost, row: Enclave) -> bool:
    vm = host.vms.get(row.id)
    return vm is not None and vm.phase is VmPhase.RUNNING and vm.launch_uuid == row.launch_uuid


def _refuses(host: SimulatedHost, rows: list[Enclave]) -> Iterator[str]:
    """While a launch that served lives, a running blue_green keeps a target in force."""
    update = host.read(lambda tx: tx.running_update(NAME))
    deployment = host.read(lambda tx: tx.deployment(NAME))
    if update is None or deployment is None or update.strategy is not Strategy.BLUE_GREEN:
        return
    for row in rows:
        active = row.slot is deployment.active_slot and row.lifecycle is Lifecycle.RUNNING
        served = row.launch_uuid in host.served
        if active and served and _lives(host, row) and deployment.route.enclave is None:
            yield "a blue_green refuses connections on purpose"


def _updates(host: SimulatedHost) -> Iterator[str]:
    """Each is decided when it is over, says why it failed, and stopped nothing if cancelled."""
    there = {row.id for row in host.read(lambda tx: tx.enclaves())}
    for update in host.read(lambda tx: tx.updates(NAME)):
        what = f"update to {update.tag}: {update.decided} in {update.step}"
        over = update.decided in (Decided.COMPLETE, Decided.FAIL, Decided.CANCEL)
        if update.running and (update.finished_at is not None or update.decided == "complete"):
            yield f"{what}, runs and is finished"
        if not update.running and not (over and update.finished_at is not None):
            yield f"{what}, is over and undecided"
        if (update.fault is not None) is not (update.decided is Decided.FAIL):
            yield f"{what}, with the fault {update.fault}"
        stopped = update.fault is not None and update.fault.code == CANCELLED
        if stopped and not update.running and update.from_enclave in there:
            yield f"{what}, cancelled after the stop, and the old one is there still"
        if update.decided is Decided.CANCEL and update.old_stopped_at is not None:
            yield f"{what}, after the old one was stopped"


def at_rest(host: SimulatedHost) -> list[str]:
    """What must hold once everything settled: it serves, or it says why it does not."""
    deployment = host.read(lambda tx: tx.deployment(NAME))
    updates = host.read(lambda tx: tx.updates(NAME, limit=1))
    if deployment is None or (updates and updates[0].running):
        return []
    found = [*broken(host), *_half_done(host)]
    rows = host.read(lambda tx: tx.enclaves())
    route = deployment.route
    if host.data_plane != (route.generation, route.enclave):
        found.append(f"in force is {host.data_plane}, decided was {route}")
    if deployment.wish is not Wish.RUN:
        return found + [f"VM {key} runs, wished is {deployment.wish}" for key in host.vms]
    serves = any(row.id == route.enclave and _lives(host, row) for row in rows)
    cancelled = not rows and bool(updates) and updates[0].decided is Decided.CANCEL
    if not serves and not cancelled and (deployment.fault is None or rows or host.vms):
        found.append(f"it neither serves nor is it failed: {deployment.fault}, {rows}")
    if serves and (deployment.fault is not None or len(rows) != 1):
        found.append(f"it serves and is not well: {deployment.fault}, {rows}")
    return found


def _half_done(host: SimulatedHost) -> Iterator[str]:
    for row in host.read(lambda tx: tx.enclaves()):
        if row.lifecycle is not Lifecycle.RUNNING:
            yield f"enclave {row.id} is {row.lifecycle} for ever"
