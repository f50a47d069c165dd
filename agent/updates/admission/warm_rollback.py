"""Rollback while the old version is still warm: it takes the traffic back without booting.

The one update that is admitted while another runs. In one transaction the running update ends as
failed (`rolled_back`) and a new one begins at its switch, with the two enclaves in changed roles:
so the version that is left stays warm in its turn, and is drained and retired as ever. Nothing is
allocated.
"""

from __future__ import annotations

import msgspec

from agent.model.clock import Instant
from agent.model.enclave import Enclave, Lifecycle
from agent.model.ids import new_update_id
from agent.model.reasons import Strategy
from agent.model.revision import Deployment, Fault
from agent.model.update import Decided, Draining, Finished, Soaking, Switching, Update
from agent.store.port import Reader, Transaction
from agent.updates.admission.audit import sign
from agent.updates.orders import Caller
from agent.updates.planner.transitions import routed, transition_event


def warm_enclave(tx: Reader, deployment: Deployment, number: int) -> Enclave | None:
    """The enclave of that revision, if a running update keeps it warm."""
    update = tx.running_update(deployment.name)
    if (
        update is None
        or update.strategy is not Strategy.BLUE_GREEN
        or not isinstance(update.state, Soaking | Draining)
        or update.from_revision != number
        or update.from_enclave is None
    ):
        return None
    row = tx.enclave(update.from_enclave)
    return row if row is not None and row.lifecycle is Lifecycle.RUNNING else None


def roll_back_warm(
    tx: Transaction, deployment: Deployment, row: Enclave, now: Instant, caller: Caller
) -> Update:
    """Switch back to `row`, which `warm_enclave` found in this very transaction."""
    running = tx.running_update(deployment.name)
    assert running is not None
    ended = msgspec.structs.replace(
        running,
        state=Finished(step=running.step),
        decided=Decided.FAIL,
        fault=Fault(
            code="rolled_back",
            detail=f"rolled back to {running.from_tag} by {caller.name} while it was still warm",
            step=str(running.step),
            console_tail="",
        ),
        finished_at=now,
    )
    update = _back(running, row, now, caller)
    after, route_event = routed(deployment, row.id, "warm rollback")
    after = msgspec.structs.replace(
        after, active_slot=row.slot, active_revision=row.revision, relaunches=()
    )
    tx.put_update(ended)
    tx.put_update(update)
    tx.put_deployment(after)
    tx.append(transition_event(running, ended, "rolled_back"))
    begun = transition_event(update, update, "warm rollback")
    sign(tx, msgspec.structs.replace(begun, from_=None), caller)
    tx.append(route_event)
    return update


def _back(running: Update, row: Enclave, now: Instant, caller: Caller) -> Update:
    assert running.from_tag is not None
    return Update(
        id=new_update_id(),
        deployment=running.deployment,
        strategy=Strategy.BLUE_GREEN,
        staging=False,
        revision=row.revision,
        tag=running.from_tag,
        enclave=row.id,
        slot=row.slot,
        from_revision=running.revision,
        from_tag=running.tag,
        from_enclave=running.enclave,
        state=Switching(),
        decided=Decided.SWITCH,
        revert_after_switch=running.revert_after_switch,
        requester=caller.name,
        request=caller.request,
        epoch=caller.epoch,
        created_at=now,
        started_at=now,
        ready_at=now,
    )
