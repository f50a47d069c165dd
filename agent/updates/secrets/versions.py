"""Secrets of deployments: new values become new versions; the store learns names and digests."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from weakref import WeakValueDictionary

import msgspec

from agent.errors import AgentError, describe
from agent.model.event import EventDraft
from agent.model.ids import DeploymentName
from agent.model.reasons import DecidedStrategy, Decision
from agent.model.revision import Revision
from agent.store.port import Reader, Store, Transaction
from agent.updates.admission.admit import secrets_gone
from agent.updates.admission.audit import sign
from agent.updates.errors import RefusedError
from agent.updates.orders import Caller
from agent.updates.planner.alarm import Alarm
from agent.updates.secrets.values import SecretValues

log = logging.getLogger(__name__)

_KEEP_EVERY_S = 60.0


@dataclass(frozen=True, slots=True)
class Staged:
    """Values in the vault, not yet recorded. `versions`: what an enclave would be given."""

    name: DeploymentName
    versions: dict[str, int]
    changes: dict[str, tuple[int, str] | None]

    def record(self, tx: Transaction, caller: Caller) -> None:
        """Make the new versions the current ones."""
        for secret, change in self.changes.items():
            if change is None:
                tx.delete_secret(self.name, secret)
            else:
                tx.put_secret_version(self.name, secret, *change)
            event = EventDraft(
                kind="secret",
                deployment=self.name,
                to=f"version {change[0]}" if change else "removed",
                reason=secret,
            )
            sign(tx, event, caller)


class Secrets:
    """The vault first, the version after, so that a recorded version has its value.

    `show` shows what is wrong with what is kept at rest, all of it under a name at once.
    """

    def __init__(
        self,
        store: Store,
        secret_values: SecretValues,
        show: Callable[[str, Mapping[str, Alarm]], None] = lambda _name, _alarms: None,
    ) -> None:
        self._store = store
        self._secret_values = secret_values
        self._show = show
        self._lacked: str | None = None
        self._turns: WeakValueDictionary[DeploymentName, asyncio.Lock] = WeakValueDictionary()

    @contextlib.asynccontextmanager
    async def staging(
        self, name: DeploymentName, values: Mapping[str, str | None] | None
    ) -> AsyncIterator[Staged]:
        """Stage values to be recorded in the body; whatever is not recorded then is removed.

        One request of a deployment at a time: another one's sweep would take these values, and
        its own would get the same version. Raises what `stage` raises.
        """
        turn = self._turns.setdefault(name, asyncio.Lock())
        async with turn:
            try:
                yield await self.stage(name, values)
            finally:
                await self._sweep_quietly(name)

    async def _sweep_quietly(self, name: DeploymentName) -> None:
        """What is recorded is recorded: that a value is left over must not make it look undone."""
        try:
            await self.sweep(name)
            await self._say(name)
        except (AgentError, OSError) as error:
            log.warning("values not swept", extra={"deployment": name, "error": describe(error)})

    async def stage(self, name: DeploymentName, values: Mapping[str, str | None] | None) -> Staged:
        """Put every value into the vault; a changed one becomes the next version, None removes it.

        A value that a version had which is current, or which a revision names, is that version
        again, and its value is back if the host lost it in a reboot: first the one that the
        running enclave was given, so that it is not stale. `values` None removes all. Raises
        StoreFullError; what was staged before it goes with the next `sweep`.
        """
        known = await self._store.read(lambda tx: _known(tx, name))
        if values is None:
            values = dict.fromkeys(known.current)
        changes: dict[str, tuple[int, str] | None] = {}
        for secret, value in values.items():
            if value is None:
                if secret in known.current:
                    changes[secret] = None
                continue
            digest = self._secret_values.digest(value)
            had = [one for one in known.of(secret) if self._is(name, secret, one, known, digest)]
            wanted = known.choose(secret, had)
            for version in {*had, wanted}:
                await self._secret_values.keep(
                    name, secret, version, value, new=version not in had
                )
            if known.current.get(secret) != wanted:
                changes[secret] = (wanted, digest)
        versions = dict(known.current)
        for secret, change in changes.items():
            if change is None:
                del versions[secret]
            else:
                versions[secret] = change[0]
        return Staged(name=name, versions=versions, changes=changes)

    def _is(
        self, name: DeploymentName, secret: str, version: int, known: _Known, digest: str
    ) -> bool:
        """Whether that version has this digest, which older agents kept of current ones only."""
        recorded = known.digests.get((secret, version))
        if recorded is None:
            value = self._secret_values.get(name, secret, version)
            recorded = self._secret_values.digest(value) if value is not None else ""
        return hmac.compare_digest(recorded, digest)

    async def only_current(self, revision: Revision) -> bool:
        """Whether values that a revision was given are gone, and all current ones are here.

        Raises RefusedError if neither are.
        """
        name = revision.deployment
        if not self._secret_values.missing(name, revision.awaited_secrets):
            return False
        known = await self._store.read(lambda tx: _known(tx, name))
        current = msgspec.structs.replace(revision, secrets=known.current)
        missing = self._secret_values.missing(name, current.awaited_secrets)
        if missing:
            reason = secrets_gone(missing)
            raise RefusedError(Decision(strategy=DecidedStrategy.REFUSE, reasons=(reason,)))
        return True

    async def fetch(self, revision: Revision) -> dict[str, str]:
        """Those values of a revision that the host has, in memory or kept at rest."""
        name = revision.deployment
        memory = {one: self._secret_values.get(name, *one) for one in revision.secrets.items()}
        if None in memory.values() and self._secret_values.at_rest.on:
            async with self._turns.setdefault(name, asyncio.Lock()):
                found = await asyncio.gather(
                    *(self._secret_values.fetch(name, *one) for one in memory)
                )
            memory = dict(zip(memory, found, strict=True))
        await self._say(name)
        return {secret: value for (secret, _), value in memory.items() if value is not None}

    async def keep(self) -> None:
        """Keep at rest what is in memory only, and show what is wrong; again after a while."""
        if self._secret_values.at_rest.on:
            self._say_what_lacks(self._secret_values.at_rest.lacks())
            for row in await self._store.read(lambda tx: tx.deployments()):
                async with self._turns.setdefault(row.name, asyncio.Lock()):
                    await self._keep_at_rest(row.name)
                await self._say(row.name)
        await asyncio.sleep(_KEEP_EVERY_S)

    def _say_what_lacks(self, lacks: str | None) -> None:
        self._show("secrets at rest", {"lacks": _none_kept(lacks)} if lacks else {})
        if lacks and lacks != self._lacked:
            log.error("secrets cannot be kept at rest", extra={"error": lacks})
        self._lacked = lacks

    async def _keep_at_rest(self, name: DeploymentName) -> None:
        wanted = await self._store.read(lambda tx: _wanted(tx, name))
        at_rest = self._secret_values.at_rest
        for version in sorted(wanted & self._secret_values.here(name) - at_rest.here(name)):
            value = self._secret_values.get(name, *version)
            if value is not None:
                await at_rest.keep(name, version, value)

    async def _say(self, name: DeploymentName) -> None:
        """Show what is wrong with what a deployment has at rest, or that nothing is any more."""
        if self._secret_values.at_rest.on:
            known = await self._store.read(lambda tx: _known(tx, name))
            needed = {*known.current.items(), *known.given.items()}
            self._show(_shown_as(name), self._secret_values.at_rest.alarms(name, needed))

    def forget(self, name: DeploymentName) -> None:
        """Remove every value of a deployment."""
        self._secret_values.forget(name)
        self._show(_shown_as(name), {})

    async def sweep(self, name: DeploymentName) -> None:
        """Remove the values that neither a revision nor the current versions name."""
        self._secret_values.keep_only(name, await self._store.read(lambda tx: _wanted(tx, name)))


def _wanted(tx: Reader, name: DeploymentName) -> set[tuple[str, int]]:
    used = {(s, v) for row in tx.revisions(name) for s, v in row.secrets.items()}
    return used | {(s, v) for s, (v, _) in tx.secret_versions(name).items()}


def _shown_as(name: DeploymentName) -> str:
    return f"secrets of {name}"


def _none_kept(lacks: str) -> Alarm:
    return Alarm(
        code="secrets_not_kept",
        severity="error",
        detail=f"no secret can be kept at rest: {lacks}",
        mend="install systemd 250 or later, or set secrets.at_rest: off",
    )


@dataclass(frozen=True, slots=True)
class _Known:
    """What is recorded of a deployment's secrets. `named`: what revisions were given."""

    current: dict[str, int]
    given: Mapping[str, int]
    named: frozenset[tuple[str, int]]
    digests: dict[tuple[str, int], str]

    def of(self, secret: str) -> list[int]:
        """The versions that are current or that a revision names, oldest first."""
        found = {version for name, version in self.named if name == secret}
        return sorted(found | ({self.current[secret]} if secret in self.current else set()))

    def choose(self, secret: str, had: list[int]) -> int:
        """Which version a value is. `had`: those whose value it was.

        A new one is a number that no revision was ever given, also after a removal.
        """
        for one in (self.given.get(secret), self.current.get(secret)):
            if one in had:
                return one
        return had[-1] if had else max(self.of(secret), default=0) + 1


def _known(tx: Reader, name: DeploymentName) -> _Known:
    deployment, revisions = tx.deployment(name), tx.revisions(name)
    active = deployment.active_revision if deployment else None
    return _Known(
        current={secret: version for secret, (version, _) in tx.secret_versions(name).items()},
        given=next((row.secrets for row in revisions if row.number == active), {}),
        named=frozenset(one for row in revisions for one in row.secrets.items()),
        digests=tx.secret_digests(name),
    )
