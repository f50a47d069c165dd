"""Values of secrets that survive a reboot: each one encrypted for this host, in a private file.

A file lives as long as the value's own in the vault: it is written before its version is recorded
and removed when nothing names that version any more. What cannot be encrypted or decrypted loses
nothing else: it is remembered with the reason, said, and tried again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from agent.errors import AgentError, describe
from agent.host.credentials import CredentialCipher, CredentialError
from agent.host.files import (
    FileAbsentError,
    make_private_directory,
    read_bounded,
    storage_errors,
    write_atomic,
)
from agent.host.threads import finish_in_thread
from agent.model.ids import DeploymentName
from agent.updates.planner.alarm import Alarm

log = logging.getLogger(__name__)

_MAX_BYTES = 4 << 20
_FILE = re.compile(r"(\w+)\.(\d+)", re.ASCII)
Version = tuple[str, int]


@dataclass(slots=True)
class Troubles:
    """Versions of a deployment's secrets that are not as they should be, each with the reason."""

    not_kept: dict[Version, str] = field(default_factory=dict)
    unreadable: dict[Version, str] = field(default_factory=dict)


class AtRest:
    """`credentials` None: nothing is kept, and what was kept before goes.

    `lacks` says why this host cannot keep any, if it cannot.
    """

    def __init__(
        self,
        directory: Path,
        credentials: CredentialCipher | None = None,
        lacks: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._directory = directory
        self._credentials = credentials
        self._lacks = lacks
        self.troubles: dict[DeploymentName, Troubles] = {}

    @property
    def on(self) -> bool:
        return self._credentials is not None

    def lacks(self) -> str | None:
        """Why nothing can be kept although it should be."""
        return self._lacks() if self.on else None

    async def keep(self, deployment: DeploymentName, version: Version, value: str) -> None:
        """Keep a value, durably when this returns; if that fails it is a trouble and no error."""
        if self._credentials is None:
            return
        troubles = self.troubles.setdefault(deployment, Troubles())
        try:
            sealed = await self._credentials.encrypt(_name(deployment, version), value.encode())
            await finish_in_thread(self._write, deployment, version, sealed)
        except AgentError as error:
            troubles.not_kept[version] = describe(error)
            _warn("secret not kept at rest", deployment, version, error)
        else:
            troubles.not_kept.pop(version, None)
            troubles.unreadable.pop(version, None)

    def _write(self, deployment: DeploymentName, version: Version, sealed: bytes) -> None:
        make_private_directory(self._directory)
        make_private_directory(self._directory / deployment)
        write_atomic(self._path(deployment, version), sealed, mode=0o600)

    async def fetch(self, deployment: DeploymentName, version: Version) -> str | None:
        """A value that was kept; None if it was not, or cannot be read (which is a trouble)."""
        if self._credentials is None:
            return None
        troubles = self.troubles.setdefault(deployment, Troubles())
        path = self._path(deployment, version)
        try:
            sealed = await asyncio.to_thread(read_bounded, path, _MAX_BYTES)
            value = await self._credentials.decrypt(_name(deployment, version), sealed)
            text = value.decode()
        except FileAbsentError:
            return None
        except (AgentError, UnicodeDecodeError) as error:
            if isinstance(error, UnicodeDecodeError):
                error = CredentialError("what is kept is no text")
            troubles.unreadable[version] = describe(error)
            _warn("secret kept at rest cannot be read", deployment, version, error)
            return None
        troubles.unreadable.pop(version, None)
        return text

    def here(self, deployment: DeploymentName) -> frozenset[Version]:
        """What is kept and not known to be unreadable."""
        if self._credentials is None:
            return frozenset()
        troubles = self.troubles.get(deployment)
        return versions_in(self._directory / deployment) - set(
            troubles.unreadable if troubles else ()
        )

    def alarms(self, name: DeploymentName, needed: Collection[Version]) -> dict[str, Alarm]:
        """What a person should know of a deployment. `needed`: what is or would be run now."""
        troubles = self.troubles.get(name, Troubles())
        not_kept = _those(troubles.not_kept, needed)
        unreadable = _those(troubles.unreadable, needed)
        found = {}
        if not_kept:
            found["not_kept"] = Alarm(
                code="secrets_not_kept",
                severity="warning",
                detail=f"{name}: {not_kept}; it is in memory only",
                mend="see `enclave-agent doctor`; it is tried again every minute; "
                f"a reboot before makes {name} wait for its secrets",
            )
        if unreadable:
            found["unreadable"] = Alarm(
                code="secrets_unreadable",
                severity="error",
                detail=f"{name}: what is kept at rest cannot be read: {unreadable}",
                mend="bring the host's key or TPM back, or supply them again: "
                f"`enclave-agent secrets set {name} K=@FILE`",
            )
        return found

    def drop(self, deployment: DeploymentName, version: Version) -> None:
        """Remove what is kept of a version that is about to be another value's.

        Raises StorageError.
        """
        path = self._path(deployment, version)
        if self.on:
            with storage_errors("remove", path):
                path.unlink(missing_ok=True)

    def keep_only(self, deployment: DeploymentName, wanted: set[Version]) -> None:
        """Remove every value of the deployment that is not wanted any more."""
        try:
            keep_files(self._directory / deployment, wanted if self.on else set())
        except OSError as error:
            fields = {"deployment": deployment, "error": describe(error)}
            log.warning("secrets kept at rest not removed", extra=fields)
        if troubles := self.troubles.get(deployment):
            for known in (troubles.not_kept, troubles.unreadable):
                for version in known.keys() - wanted:
                    del known[version]

    def forget(self, deployment: DeploymentName) -> None:
        """Remove every value of a deployment."""
        shutil.rmtree(self._directory / deployment, ignore_errors=True)
        self.troubles.pop(deployment, None)

    def forget_others(self, names: set[DeploymentName]) -> None:
        """Remove what belongs to no known deployment; all of it if nothing is to be kept."""
        if not self._directory.is_dir():
            return
        if not self.on:
            shutil.rmtree(self._directory, ignore_errors=True)
            if self._directory.exists():
                log.error("secrets kept at rest not removed", extra={"path": self._directory})
            return
        for entry in self._directory.iterdir():
            if entry.name not in names:
                self.forget(DeploymentName(entry.name))

    def _path(self, deployment: DeploymentName, version: Version) -> Path:
        return self._directory / deployment / file_of(version)


def file_of(version: Version) -> str:
    """The name of the file that holds a version of a secret."""
    return f"{version[0]}.{version[1]}"


def versions_in(folder: Path) -> frozenset[Version]:
    """Of which versions there are files; of none where it cannot be read."""
    try:
        files = os.listdir(folder)  # noqa: PTH208 - in every turn
    except OSError:
        return frozenset()
    found = filter(None, map(_FILE.fullmatch, files))
    return frozenset((match[1], int(match[2])) for match in found)


def keep_files(folder: Path, wanted: set[Version]) -> None:
    """Remove the files of all other versions, and what a killed write left."""
    keep = {file_of(version) for version in wanted}
    if folder.is_dir():
        for path in folder.iterdir():
            if path.name not in keep:
                path.unlink(missing_ok=True)


def _those(reasons: Mapping[Version, str], needed: Collection[Version]) -> str:
    """The names, each with the reason."""
    return "; ".join(
        f"{version[0]}: {reasons[version]}" for version in sorted(reasons) if version in needed
    )


def _name(deployment: DeploymentName, version: Version) -> str:
    return f"enclave-agent.{deployment}.{file_of(version)}"


def _warn(said: str, deployment: DeploymentName, version: Version, error: Exception) -> None:
    fields = {"deployment": deployment, "secret": version[0], "error": describe(error)}
    log.warning(said, extra=fields)
