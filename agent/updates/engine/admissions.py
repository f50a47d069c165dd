"""How a request becomes an update or, where it only asks, a decision.

Both go one way: the release is resolved, the request is held against it, and the rule of admission
is asked in one transaction with what it would take.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from agent.capacity.supply import Question
from agent.model.reasons import AskedProbes, Decision
from agent.model.release import Release
from agent.model.revision import Revision
from agent.model.update import Update
from agent.probes.choice import asked_probes
from agent.store.port import Transaction
from agent.updates.admission.admit import (
    Ask,
    admit_change,
    admit_new,
    admit_revision,
    new_revision,
    secrets_gone,
)
from agent.updates.admission.debug_variant import required, with_variant
from agent.updates.admission.judging import judge, question
from agent.updates.admission.lookup import current
from agent.updates.admission.moved_tags import taken_before, with_moved_tag
from agent.updates.admission.requests import ask_for_change, resolve
from agent.updates.admission.rows import Options, Terms
from agent.updates.admission.secret_names import DOMAIN
from agent.updates.engine.engine import EngineRuntime
from agent.updates.errors import FieldError, RefusedError
from agent.updates.orders import Caller, Change, PlanQuestion
from agent.updates.secrets.versions import Staged


def _given_names(wanted: PlanQuestion, before: Revision) -> dict[str, str | None]:
    """Variables that a plan names: that there is one is what matters, but for the guest's name."""
    domain = before.domain if wanted.domain is msgspec.UNSET else wanted.domain
    name = domain or "given.invalid"
    return {one: name if one == DOMAIN else "" for one in wanted.variables}


class Admissions:
    """On the engine that runs; `revert_after_switch` is what a request that does not say gets."""

    def __init__(self, runtime: EngineRuntime, *, revert_after_switch: bool) -> None:
        self._runtime = runtime
        self._parts = runtime.parts
        self._store = runtime.parts.store
        self._revert_after_switch = revert_after_switch

    async def release(self, before: Revision, change: Change) -> Release:
        """What the change asks for: without a tag the contents that are recorded.

        Raises RefusedError, ReleaseSourceError.
        """
        change = with_variant(before, change)
        return await required(change, lambda: self._resolved(before, change))

    async def _resolved(self, before: Revision, change: Change) -> Release:
        parts = self._parts
        if change.tag is msgspec.UNSET:
            digest = before.release_digest
            return await resolve(parts.releases, before.repo, before.tag, parts.launchable, digest)
        return await resolve(parts.releases, before.repo, change.tag, parts.launchable)

    async def ask(
        self, before: Revision, change: Change, release: Release, secrets: Mapping[str, int]
    ) -> Ask:
        """Put the request together with its release. Raises FieldError."""
        ask = ask_for_change(
            change,
            before,
            release,
            secrets,
            self._parts.traffic,
            revert_after_switch=self._revert_after_switch,
        )
        taken = await self._store.read(lambda tx: taken_before(tx, before, release.tag))
        return with_moved_tag(ask, taken, accepted=change.accept_moved_tag)

    async def admit(self, ask: Ask, staged: Staged, caller: Caller, *, new: bool) -> Update:
        """Have it admitted and durable, its secrets with it. Raises RefusedError."""
        terms = await self._terms(caller)

        def work(tx: Transaction) -> Update:
            admit = admit_new if new else admit_change
            update = admit(tx, ask, terms)
            staged.record(tx, caller)
            return update

        return await self._store.transact(work)

    async def _terms(self, caller: Caller) -> Terms:
        return Terms(
            supply=await self._runtime.supply(), now=self._parts.clock.now(), caller=caller
        )

    async def admit_recorded(self, revision: Revision, options: Options, caller: Caller) -> Update:
        """Have a recorded revision admitted again, whose signature was asked for.

        Its secrets must be here still. Raises RefusedError.
        """
        name, number = revision.deployment, revision.number
        missing = self._parts.secret_values.missing(name, revision.awaited_secrets)
        if missing:
            options = msgspec.structs.replace(options, obstacles=(secrets_gone(missing),))
        terms = await self._terms(caller)
        update = await self._store.transact(
            lambda tx: admit_revision(tx, name, number, options, terms)
        )
        await self._runtime.refresh(name)
        return update

    async def plan(self, question: PlanQuestion) -> Decision:
        """What admission would say at this moment."""
        asked = await self._question(question)
        if isinstance(asked, Decision):
            return asked
        wanted, probes = asked
        supply, now = await self._runtime.supply(), self._parts.clock.now()
        decision = await self._store.read(lambda tx: judge(tx, wanted, supply, now).decision)
        return msgspec.structs.replace(decision, probes=probes)

    async def _question(
        self, wanted: PlanQuestion
    ) -> tuple[Question, AskedProbes | None] | Decision:
        """What is to be judged; of a deployment with how its next revision would be asked."""
        name = wanted.deployment
        if wanted.demand is not None:
            if name is not None or wanted.tag is not None:
                raise FieldError("demand", "either a demand, or a deployment with a tag")
            bare = Question(demand=wanted.demand, insisted=wanted.strategy, staging=wanted.staging)
            return bare, None
        if name is None:
            raise FieldError("deployment", "a deployment or a demand is needed")
        before = await self._store.read(lambda tx: current(tx, name))
        change = Change(
            tag=wanted.tag or msgspec.UNSET,
            staging=wanted.staging,
            strategy=wanted.strategy,
            accept_moved_tag=wanted.accept_moved_tag,
            debug=wanted.debug,
            probes=wanted.probes,
            listen=wanted.listen,
            publish=wanted.publish,
            domain=wanted.domain,
            variables=_given_names(wanted, before) | dict.fromkeys(wanted.unset_variables),
            secrets=dict.fromkeys(wanted.secrets, "") | dict.fromkeys(wanted.unset_secrets),
        )
        staged = await self._runtime.secrets.stage(name, {})
        try:
            secrets = dict.fromkeys(wanted.secrets, 0) | staged.versions
            secrets = {n: one for n, one in secrets.items() if n not in wanted.unset_secrets}
            ask = await self.ask(before, change, await self.release(before, change), secrets)
        except RefusedError as refused:
            return refused.decision
        revision = new_revision(ask, before.number + 1, self._parts.clock.now())
        options = Options(
            staging=ask.staging,
            strategy=ask.strategy,
            obstacles=(*ask.obstacles, *await self._parts.foresee_launch(ask.release)),
            warnings=(*ask.warnings, *await self._parts.foresee(ask.release)),
        )
        asked = await self._store.read(lambda tx: question(tx, name, revision, options))
        return asked, asked_probes(revision)
