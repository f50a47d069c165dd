"""From the switch on, and backwards: soak, drain, retire, revert, teardown. Pure."""

from __future__ import annotations

from agent.model.enclave import Lifecycle
from agent.model.ids import EnclaveId
from agent.model.reasons import Strategy
from agent.model.revision import Fault
from agent.model.update import (
    Draining,
    Retiring,
    Reverting,
    Soaking,
    Step,
    TearingDown,
    Update,
)
from agent.updates.planner.attestation import keep_verified, loss
from agent.updates.planner.before_switch import vm_fault
from agent.updates.planner.reach import blame, wait_to_know
from agent.updates.planner.stop_old import end_old, mark_stopping
from agent.updates.planner.stop_stages import advance, begun
from agent.updates.planner.transitions import become, complete, end, fail, revert
from agent.updates.planner.types import Plan, Situation, act, rest

_LOOK_S = 1  # between looks at what rings no bell: a count, an answer that changes no verdict


def old_can_take_over(s: Situation, update: Update) -> bool:
    """It is up, and nothing is known against its health or its evidence."""
    old = s.enclaves.get(update.from_enclave) if update.from_enclave else None
    if old is None or not s.is_up(old):
        return False
    return s.healthy(old.id) is not False and loss(s, old) is None


def soak(s: Situation, update: Update, state: Soaking) -> Plan:
    sick = sickness(s, update.enclave)
    if update.strategy is Strategy.STOP_THEN_START:
        if s.rebooted(update.enclave):
            return complete(s)  # it is launched again as what serves, which it is
        if sick:
            return fail(s, Step.SOAK, sick)
        if not s.now.reached(state.until):
            return rest(state.until)
        if _falters(s, update.enclave):
            return rest(s.now.plus(_LOOK_S))
        return wait_to_know(s, update) or complete(s)
    sick = sick or blame(s, update)
    if sick and update.revert_after_switch and old_can_take_over(s, update):
        return revert(s, sick)
    if s.now.reached(state.until):
        if _falters(s, update.enclave):
            return rest(s.now.plus(_LOOK_S)).also(_keep_warm(s, update))
        if (waiting := wait_to_know(s, update)) is not None:
            return waiting.also(_keep_warm(s, update))
        late = s.now.reached(state.drain_until)
        return become(s, Draining(until=s.now if late else state.drain_until))
    return rest(state.until).also(_keep_warm(s, update))


def _falters(s: Situation, enclave: EnclaveId) -> bool:
    """Whether its newest answers leave open if it is well: the next ones are a verdict.

    Nothing is given up for it before that. One that runs and was not asked yet, or whose evidence
    was not judged yet (the agent began anew, or the host was suspended), is asked soon; one that
    does not run is another matter.
    """
    health, up = s.health_of(enclave), s.is_up(s.enclaves[enclave])
    if health is None or health.healthy is None:
        return up
    unjudged = s.policy.by_evidence and enclave not in s.verdicts
    return health.falters or (up and unjudged)


def _keep_warm(s: Situation, update: Update) -> Plan:
    """What may take the traffic back is judged again as what serves is."""
    old = s.enclaves.get(update.from_enclave) if update.from_enclave else None
    return keep_verified(s, old) if old is not None and s.is_up(old) else rest()


def sickness(s: Situation, enclave: EnclaveId) -> Fault | None:
    """What is wrong with an enclave that was Ready: its VM, its probes or its evidence."""
    row = s.enclaves[enclave]
    if s.gone(enclave):
        return vm_fault(s, row)
    health = s.health_of(enclave)
    if health is None or health.healthy is not False:
        return loss(s, row)
    return health.fault or Fault(code="unhealthy", detail="its probes fail")


def drain(s: Situation, update: Update, state: Draining) -> Plan:
    old = s.enclaves.get(update.from_enclave) if update.from_enclave else None
    if old is None:
        return become(s, Retiring())
    if s.gone(old.id) or s.now.reached(state.until):
        return become(s, Retiring())
    if old.id not in s.draining:
        return rest(s.now)
    if s.draining[old.id] == 0:
        return become(s, Retiring())
    look = min(s.now.plus(_LOOK_S), state.until, key=lambda at: at.boottime_s)
    return rest(look).also(_keep_warm(s, update))


def retire(s: Situation, update: Update) -> Plan:
    old = s.enclaves.get(update.from_enclave) if update.from_enclave else None
    if old is None:
        return complete(s)
    if old.lifecycle is not Lifecycle.STOPPING:
        return mark_stopping(s, update, old, begun(s, old))
    return advance(s, old, update) or complete(s, drop=old.id)


def send_back(s: Situation, state: Reverting) -> Plan:
    if not s.route_applied:
        return act(s.apply_route)
    return become(s, TearingDown(step=Step.REVERT, fault=state.fault, since=s.now))


def tear_down(s: Situation, update: Update, state: TearingDown) -> Plan:
    row = s.enclaves.get(update.enclave)
    if row is None or row.lifecycle is Lifecycle.PLANNED:
        return _end(s, update, state)
    if s.deployment.route.enclave is None and not s.route_applied:
        return act(s.apply_route)
    if row.lifecycle is not Lifecycle.STOPPING:
        served = update.switched_at is not None
        well = sickness(s, row.id) is None  # a rollback, say
        return mark_stopping(s, update, row, begun(s, row, served=served, polite=served and well))
    return advance(s, row, update) or _end(s, update, state)


def _end(s: Situation, update: Update, state: TearingDown) -> Plan:
    """What was to be stopped for it is stopped: nobody is left half stopped by a cancel."""
    if state.step is not Step.STOP_OLD:
        return end(s, state)
    return end_old(s, update) or end(s, state, stopped=update.from_enclave)
