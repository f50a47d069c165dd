"""The requests of the surfaces: each one checked, admitted and durable before it returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from agent.attestation.port import Evidence
from agent.host.wake import Wake
from agent.inventory.port import Gpus
from agent.model.ended_console import EndedConsole
from agent.model.event import Event, EventDraft
from agent.model.ids import DeploymentName, EnclaveId
from agent.model.reasons import Decision
from agent.model.release import Release
from agent.model.revision import Revision, Wish
from agent.model.update import Decided, Update, UpdateStatus
from agent.releases.port import KeptImage
from agent.store.port import Reader, Transaction
from agent.updates.admission.accept_chip import accept_chip
from agent.updates.admission.admit import existing
from agent.updates.admission.audit import highest_epoch, reset_epoch, see_epoch, sign
from agent.updates.admission.lookup import (
    current,
    flag,
    known_secrets,
    named,
    recorded_revision,
    rollback_target,
    running,
    still_there,
    to_cancel,
    values,
)
from agent.updates.admission.requests import ask_for_new, given, require_signed, resolve
from agent.updates.admission.rows import Options
from agent.updates.admission.secret_names import check_declared
from agent.updates.admission.warm_rollback import roll_back_warm, warm_enclave
from agent.updates.engine.admissions import Admissions
from agent.updates.engine.engine import DRAINING, EngineRuntime
from agent.updates.engine.executor import UnknownEnclaveError
from agent.updates.engine.unadmitted import Unadmitted, check_there
from agent.updates.errors import ConflictError, EpochLeapError, PrunedError, UnknownNameError
from agent.updates.orders import Caller, Change, ChipChange, NewDeployment, PlanQuestion
from agent.updates.secrets.standing import SecretState, standing
from agent.updates.snapshot.snapshot import Snapshot

_LEAP = "coordinator/epoch"


class UpdateEngine:
    """Implements `agent.updates.port.Engine`."""

    def __init__(self, runtime: EngineRuntime, *, revert_after_switch: bool = True) -> None:
        self._runtime = runtime
        self._parts = runtime.parts
        self._store = runtime.parts.store
        self._revert_after_switch = revert_after_switch
        self._unadmitted = Unadmitted()
        self._admissions = Admissions(runtime, revert_after_switch=revert_after_switch)
        self.changed: Wake = runtime.publisher.changed
        self.leases = runtime.leases
        self.gpus: Gpus = runtime.parts.gpus
        self.preparation = runtime.parts.preparation

    @property
    def snapshot(self) -> Snapshot:
        return self._runtime.publisher.snapshot

    async def deploy(self, request: NewDeployment, caller: Caller) -> Update:
        """Create a deployment."""
        name = request.name
        if await self._store.read(lambda tx: tx.deployment(name)) is not None:
            raise ConflictError("exists", f"deployment {name} exists already; update it instead")
        parts = self._parts
        resolving = resolve(parts.releases, request.repo, request.tag, parts.launchable)
        release = await self._unadmitted.wait(name, caller, resolving)
        async with self._runtime.secrets.staging(name, request.secrets) as staged:
            ask = ask_for_new(request, release, staged.versions, self._parts.traffic)
            check_there(caller)
            update = await self._admissions.admit(ask, staged, caller, new=True)
        await self._runtime.refresh(name)
        return update

    async def update(self, name: DeploymentName, change: Change, caller: Caller) -> Update:
        """Update a deployment to another tag, other variables, secrets or listeners."""
        before, release = await self._resolved(name, change, caller)
        async with self._runtime.secrets.staging(name, values(change)) as staged:
            now = await self._store.read(lambda tx: current(tx, name))
            if change.tag is msgspec.UNSET and now.release_digest != before.release_digest:
                raise ConflictError(
                    "changed_meanwhile", f"another update of {name} came first; ask again"
                )
            ask = await self._admissions.ask(now, change, release, staged.versions)
            check_there(caller)
            update = await self._admissions.admit(ask, staged, caller, new=False)
        await self._runtime.refresh(name)
        return update

    async def _resolved(
        self, name: DeploymentName, change: Change, caller: Caller
    ) -> tuple[Revision, Release]:
        """What the deployment has, and what it is to have. Nothing else of it waits meanwhile."""
        before = await self._store.read(lambda tx: current(tx, name))
        resolving = self._admissions.release(before, change)
        return before, await self._unadmitted.wait(name, caller, resolving)

    async def rollback(self, name: DeploymentName, to: str | int | None, caller: Caller) -> Update:
        """An ordinary update to an older revision; without booting while that one is warm."""
        revision = await self._store.read(lambda tx: rollback_target(tx, name, to))
        await self._signed(revision, caller)
        now = self._parts.clock.now()

        def back(tx: Transaction) -> Update | None:
            deployment = existing(tx, name)
            row = warm_enclave(tx, deployment, revision.number)
            if row is None or not self._runtime.is_well(row):
                return None
            return roll_back_warm(tx, deployment, row, now, caller)

        update = await self._store.transact(back)
        if update is not None:
            return await self._flagged(name, update)
        options = Options(revert_after_switch=self._revert_after_switch)
        return await self._admissions.admit_recorded(revision, options, caller)

    async def _signed(self, revision: Revision, caller: Caller) -> None:
        signed = require_signed(self._parts.releases, revision)
        await self._unadmitted.wait(revision.deployment, caller, signed)

    async def accept(self, name: DeploymentName, caller: Caller) -> Update:
        """Of a staged update that is ready."""

        def work(tx: Transaction) -> Update:
            update = running(tx, name)
            if not update.staging:
                raise ConflictError(
                    "not_staged", "the update was not staged: it goes on by itself"
                )
            if update.cancel_requested or update.decided is not Decided.UNDECIDED:
                raise ConflictError("decided", "the update is decided already")
            if update.status is not UpdateStatus.READY and str(update.step) != "accept":
                raise ConflictError("not_ready", f"the update is {update.status}, not ready yet")
            return flag(tx, update, caller, accepted=True)

        return await self._flagged(name, await self._store.transact(work))

    async def cancel(self, name: DeploymentName, caller: Caller) -> Update | None:
        """Until the switch is decided; and what waits to be admitted. None: it was only that."""
        called_off = self._unadmitted.call_off(name)

        def work(tx: Transaction) -> Update:
            update = to_cancel(tx, name, self._runtime.is_well)
            if update.cancel_requested or update.decided is not Decided.UNDECIDED:
                return update
            return flag(tx, update, caller, cancel_requested=True)

        try:
            update = await self._store.transact(work)
        except (ConflictError, UnknownNameError):
            if called_off:
                return None
            raise
        return await self._flagged(name, update)

    async def _flagged(self, name: DeploymentName, update: Update) -> Update:
        await self._runtime.refresh(name)
        return update

    async def retry(self, name: DeploymentName, caller: Caller) -> Update:
        """The failed update again, as a new one."""

        def last(tx: Reader) -> tuple[Update, Revision]:
            named(tx, name)
            updates = tx.updates(name, limit=1)
            retryable = (Decided.FAIL, Decided.CANCEL)
            if not updates or updates[0].running or updates[0].decided not in retryable:
                raise ConflictError("nothing_to_retry", "the newest update did not fail")
            return updates[0], recorded_revision(tx, name, updates[0].revision)

        failed, revision = await self._store.read(last)
        await self._signed(revision, caller)
        options = Options(
            staging=failed.staging,
            strategy=failed.insisted,
            revert_after_switch=failed.revert_after_switch,
            restart_old_on_failure=failed.restart_old_on_failure,
        )
        return await self._admissions.admit_recorded(revision, options, caller)

    async def start(self, name: DeploymentName, caller: Caller) -> Update:
        """Of a stopped or failed deployment: its active revision again.

        Where values that it was given are gone: a redeploy with the current ones.
        """

        def target(tx: Reader) -> Revision:
            deployment = named(tx, name)
            if any(row.slot is deployment.active_slot for row in tx.enclaves(name)) and (
                deployment.wish is Wish.RUN
            ):
                known = self.snapshot.deployments.get(name)
                raise still_there(name, known.status if known else None)
            number = deployment.active_revision or deployment.last_revision
            return recorded_revision(tx, name, number)

        revision = await self._store.read(target)
        await self._signed(revision, caller)
        if await self._runtime.secrets.only_current(revision):
            return await self.update(name, Change(), caller)
        return await self._admissions.admit_recorded(revision, Options(), caller)

    async def stop(self, name: DeploymentName, caller: Caller) -> None:
        """Stop serving; the deployment stays."""
        await self._wish(name, Wish.STOP, caller)

    async def delete(self, name: DeploymentName, caller: Caller) -> None:
        """Stop and forget."""
        await self._wish(name, Wish.DELETE, caller)

    async def _wish(self, name: DeploymentName, wish: Wish, caller: Caller) -> None:
        def work(tx: Transaction) -> None:
            deployment = named(tx, name)
            if tx.running_update(name) is not None:
                raise ConflictError(
                    "update_in_progress", "an update is running: cancel it, or wait for its end"
                )
            if deployment.wish is Wish.DELETE or deployment.wish is wish:
                return
            tx.put_deployment(
                msgspec.structs.replace(
                    deployment, wish=wish, fault=None, restart_old_revision=None
                )
            )
            event = EventDraft(
                kind="deployment", deployment=name, from_=str(deployment.wish), to=str(wish)
            )
            sign(tx, event, caller)

        await self._store.transact(work)
        await self._runtime.refresh(name)

    async def set_secrets(
        self, name: DeploymentName, values: Mapping[str, str | None], caller: Caller
    ) -> tuple[str, ...]:
        """Record new values; restart nothing."""
        await self._store.read(lambda tx: named(tx, name))
        async with self._runtime.secrets.staging(name, values) as staged:
            declared = await self._store.read(lambda tx: known_secrets(tx, name))
            if declared is not None:
                check_declared(given(values), declared, "")

            def work(tx: Transaction) -> None:
                named(tx, name)
                staged.record(tx, caller)

            await self._store.transact(work)
        await self._runtime.refresh(name)
        facts = self.snapshot.deployments.get(name)
        return facts.stale_secrets if facts else ()

    async def secrets(self, name: DeploymentName) -> tuple[SecretState, ...]:
        """How each secret stands."""

        def read(tx: Reader) -> tuple[dict[str, int], Revision | None]:
            deployment = named(tx, name)
            number = deployment.active_revision or deployment.last_revision
            versions = tx.secret_versions(name)
            current = {secret: version for secret, (version, _) in versions.items()}
            return current, tx.revision(name, number)

        recorded, revision = await self._store.read(read)
        return standing(recorded, revision, self._parts.secret_values.missing(name, recorded))

    async def plan(self, question: PlanQuestion) -> Decision:
        """What admission would say at this moment."""
        return await self._admissions.plan(question)

    async def drain(self, caller: Caller) -> None:
        """Admit nothing new; what runs goes on."""
        await self._drain(True, caller)

    async def undrain(self, caller: Caller) -> None:
        """Admit again."""
        await self._drain(False, caller)

    async def _drain(self, draining: bool, caller: Caller) -> None:
        def work(tx: Transaction) -> None:
            tx.set_meta(DRAINING, "yes" if draining else "no")
            kind = "draining" if draining else "admitting"
            sign(tx, EventDraft(kind="host", to=kind), caller)

        await self._store.transact(work)
        self._runtime.show_draining(draining)

    async def see_epoch(self, caller: Caller) -> None:
        """Of a coordinator that asks for something: recorded before anything else is done."""
        epoch, publisher = caller.epoch, self._runtime.publisher
        if epoch is None:
            return
        if epoch != await self._store.read(highest_epoch):
            try:
                await self._store.transact(lambda tx: see_epoch(tx, epoch, caller.name))
            except EpochLeapError as error:
                publisher.raise_problem(
                    _LEAP,
                    code=error.code,
                    severity="error",
                    detail=f"{caller.name} was refused: {error}",
                    mend="if the coordinator was restored: enclave-agent coordinator-epoch reset",
                )
                raise
        publisher.clear_problem(_LEAP)

    async def reset_epoch(self, caller: Caller) -> int:
        """Forget the highest epoch, for a coordinator that was restored."""
        forgotten = await self._store.transact(lambda tx: reset_epoch(tx, caller))
        self._runtime.publisher.clear_problem(_LEAP)
        return forgotten

    async def updates(self, name: DeploymentName) -> list[Update]:
        """Newest first."""

        def read(tx: Reader) -> list[Update]:
            named(tx, name)
            return tx.updates(name)

        return await self._store.read(read)

    async def events(self, after: int, limit: int = 1000) -> Sequence[Event]:
        """In order, after a sequence."""

        def read(tx: Reader) -> list[Event]:
            oldest, _ = tx.event_bounds()
            if after < oldest - 1:
                raise PrunedError(oldest)
            return tx.events(after, limit)

        return await self._store.read(read)

    async def evidence(self, enclave_id: EnclaveId, nonce: bytes | None) -> Evidence:
        """What an enclave's evidence is worth."""
        try:
            return await self._runtime.executor.evidence(enclave_id, nonce)
        except UnknownEnclaveError as error:
            raise UnknownNameError(f"no enclave {enclave_id}") from error

    async def accept_chip(self, name: DeploymentName, caller: Caller) -> ChipChange:
        """Have the processor that its newest evidence names be this machine's."""
        await self._store.read(lambda tx: named(tx, name))
        row = await self._parts.attestation.chip_to_accept(name)
        change = await self._store.transact(lambda tx: accept_chip(tx, name, row, caller))
        self._parts.attestation.compare_anew()
        self._runtime.executor.judge_again()
        self._runtime.wakeups.notify()
        return change

    async def images(self) -> Sequence[KeptImage]:
        """What is kept of releases."""
        await self._runtime.protect_images()
        return await self._parts.releases.images()

    async def prune_images(self, unused_for_s: float) -> Sequence[KeptImage]:
        """Remove what nothing needs."""
        return await self._runtime.prune_images(unused_for_s)

    async def console(self, enclave_id: EnclaveId, max_bytes: int) -> bytes:
        """The console's tail of an enclave, as it is now, or as it was at its end."""
        for facts in self.snapshot.deployments.values():
            if any(enclave.row.id == enclave_id for enclave in facts.enclaves):
                await self._parts.enclaves.drain_console(enclave_id)
                return self._parts.enclaves.console_tail(enclave_id, max_bytes)
        kept = self._parts.enclaves.ended_console_tail(enclave_id, max_bytes)
        if kept is None:
            raise UnknownNameError(f"no enclave {enclave_id}")
        return kept

    async def ended_consoles(self, name: DeploymentName) -> Sequence[EndedConsole]:
        """What is kept of enclaves that are gone."""
        return self._parts.enclaves.ended_consoles(name)
