"""Secrets of deployments: new values become new versions; the store learns names and digests."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from weakref import WeakValueDictionary

from agent.errors import AgentError, describe
from agent.model.event import EventDraft
from agent.model.ids import DeploymentName
from agent.store.port import Reader, Store, Transaction
from agent.updates.audit import sign
from agent.updates.port import Caller
from agent.updates.vault import Vault

log = logging.getLogger(__name__)


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
    """The vault first, the version after, so that a recorded version has its value."""

    def __init__(self, store: Store, vault: Vault) -> None:
        self._store = store
        self._vault = vault
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
        except (AgentError, OSError) as error:
            log.warning("values not swept", extra={"deployment": name, "error": describe(error)})

    async def stage(self, name: DeploymentName, values: Mapping[str, str | None] | None) -> Staged:
        """Put every changed value into the vault as its next version; None removes the name.

        A value equal to the current one keeps its version (and gets its value back, if the host
        lost it in a reboot); one that the running enclave was given has that version again, and is
        not stale. `values` None removes all. Raises StorageFullError; what was staged before it
        goes with the next `sweep`.
        """
        current, given = await self._store.read(
            lambda tx: (tx.secret_versions(name), _given(tx, name))
        )
        if values is None:
            values = dict.fromkeys(current)
        changes: dict[str, tuple[int, str] | None] = {}
        for secret, value in values.items():
            version, known = current.get(secret, (0, ""))
            if value is None:
                if secret in current:
                    changes[secret] = None
                continue
            digest = self._vault.digest(value)
            if known == digest:
                wanted = version
            elif self._is(name, secret, given.get(secret), digest):
                wanted = given[secret]
            else:
                wanted = await self._unused(name, secret, version)
            self._vault.put(name, secret, wanted, value)
            if known != digest:
                changes[secret] = (wanted, digest)
        versions = {secret: version for secret, (version, _) in current.items()}
        for secret, change in changes.items():
            if change is None:
                del versions[secret]
            else:
                versions[secret] = change[0]
        return Staged(name=name, versions=versions, changes=changes)

    def _is(self, name: DeploymentName, secret: str, version: int | None, digest: str) -> bool:
        """Whether the value of that version is here, and has that digest."""
        value = None if version is None else self._vault.get(name, secret, version)
        return value is not None and hmac.compare_digest(self._vault.digest(value), digest)

    async def _unused(self, name: DeploymentName, secret: str, current: int) -> int:
        """A version that no revision was ever given, also after a removal began anew at 0."""

        def highest(tx: Reader) -> int:
            return max((row.secrets.get(secret, 0) for row in tx.revisions(name)), default=0)

        return max(current, await self._store.read(highest)) + 1

    async def sweep(self, name: DeploymentName) -> None:
        """Remove the values that neither a revision nor the current versions name."""

        def wanted(tx: Reader) -> set[tuple[str, int]]:
            used = {(s, v) for row in tx.revisions(name) for s, v in row.secrets.items()}
            return used | {(s, v) for s, (v, _) in tx.secret_versions(name).items()}

        self._vault.keep_only(name, await self._store.read(wanted))


def _given(tx: Reader, name: DeploymentName) -> Mapping[str, int]:
    """The versions that the running enclave was given."""
    deployment = tx.deployment(name)
    number = deployment.active_revision if deployment else None
    return next((row.secrets for row in tx.revisions(name) if row.number == number), {})
