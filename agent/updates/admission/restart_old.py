"""Bringing the old version back after a stop_then_start that failed, as its request asked for.

It is owed from the transaction in which the update ends (`Deployment.restart_revision`), so that
neither a crash nor a reboot forgets it, until it is admitted, turns out to be impossible, or the
user asks for something else. What passes by itself is waited for: on a full host the GPUs that
the failed version left are dirty in that very moment. A drain of the host does not hinder it: it
was promised before.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec

from agent.capacity.supply import HostSupply
from agent.inventory.port import Gpus
from agent.model.clock import Instant
from agent.model.event import EventDraft
from agent.model.ids import DeploymentName
from agent.model.reasons import Reason, ReasonCode
from agent.model.revision import Revision, Wish
from agent.store.port import Reader, Store, Transaction
from agent.updates.admission.admit import Missing, admit_revision, secrets_gone
from agent.updates.admission.rows import Options, Terms
from agent.updates.errors import ConflictError, RefusedError
from agent.updates.orders import Caller

_CALLER = Caller(name="agent")
_LOOK_AGAIN_S = 1.0  # what is waited for is not always told, and a look is cheap
_PASSES = frozenset({ReasonCode.GPUS_DIRTY, ReasonCode.INVENTORY_INCOMPLETE})
_MAY_BE_MENDED_S = 600.0  # a GPU that fell ill with the version that failed is reset first


class RestartOld:
    """Ends when nothing is owed to the deployment any more. Raises AgentError: call it again."""

    def __init__(
        self,
        *,
        store: Store,
        gpus: Gpus,
        missing: Missing,
        supply: Callable[[], Awaitable[HostSupply]],
        now: Callable[[], Instant],
    ) -> None:
        self._store = store
        self._gpus = gpus
        self._missing = missing
        self._supply = supply
        self._now = now

    async def __call__(self, name: DeploymentName) -> None:
        changed = self._gpus.changed
        while True:
            seen = changed.count
            if await self._try(name):
                return
            await changed.beyond(seen, _LOOK_AGAIN_S)

    async def _try(self, name: DeploymentName) -> bool:
        supply, now = await self._supply(), self._now()
        return await self._store.transact(
            lambda tx: restart_old(tx, name, supply, self._missing, now)
        )


def promise_restart_old(tx: Transaction, name: DeploymentName, number: int) -> None:
    """Record that this revision is to be started again."""
    deployment = tx.deployment(name)
    assert deployment is not None
    tx.put_deployment(msgspec.structs.replace(deployment, restart_old_revision=number))
    tx.append(_event(name, "owed", f"revision {number}, which served before"))


def restart_old(
    tx: Transaction, name: DeploymentName, supply: HostSupply, missing: Missing, now: Instant
) -> bool:
    """Start what is owed, or give it up with an event that says why; False: try again soon.

    `missing`: which of these secrets have no value on this host.
    """
    revision = _promised(tx, name)
    if revision is None:
        return True
    gone = missing(name, revision.secrets)
    options = Options(
        obstacles=(secrets_gone(gone),) if gone else (),
        evidence_edition=revision.evidence_edition,
    )
    supply = msgspec.structs.replace(supply, draining=False)
    terms = Terms(supply=supply, now=now, caller=_CALLER)
    try:
        admit_revision(tx, name, revision.number, options, terms)
    except RefusedError as error:
        if _passes(tx, name, error.reasons, now):
            return False
        _give_up(tx, name, error)
    except ConflictError as error:
        _give_up(tx, name, error)
    return True


def _promised(tx: Reader, name: DeploymentName) -> Revision | None:
    deployment = tx.deployment(name)
    if (
        deployment is None
        or deployment.restart_old_revision is None
        or deployment.wish is not Wish.RUN
    ):
        return None
    return tx.revision(name, deployment.restart_old_revision)


def _passes(tx: Reader, name: DeploymentName, reasons: tuple[Reason, ...], now: Instant) -> bool:
    """Whatever else is short is judged once that is over: the host may have it by then."""
    codes = {reason.code for reason in reasons}
    if codes & _PASSES:
        return True
    failed = next(iter(tx.updates(name, limit=1)), None)
    ago_s = now.since(failed.finished_at) if failed and failed.finished_at else None
    return ReasonCode.GPUS_INSUFFICIENT in codes and ago_s is not None and ago_s < _MAY_BE_MENDED_S


def _give_up(tx: Transaction, name: DeploymentName, why: RefusedError | ConflictError) -> None:
    deployment = tx.deployment(name)
    assert deployment is not None
    tx.put_deployment(msgspec.structs.replace(deployment, restart_old_revision=None))
    tx.append(_event(name, "refused", f"{why.code}: {why}"))


def _event(name: DeploymentName, to: str, reason: str) -> EventDraft:
    return EventDraft(kind="restart_old", deployment=name, to=to, reason=reason)
