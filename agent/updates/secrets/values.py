"""Values of secrets: in clear on the agent's tmpfs only, one private file a version.

The store knows names, versions and keyed digests; values are here and, where the host is told to
keep them, encrypted in `at_rest`. A file is written before the version is recorded, so that a
recorded version has its value until the host reboots; files that no record names are removed at
start.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

from agent.host.files import make_private_directory, write_atomic
from agent.model.ids import DeploymentName
from agent.updates.secrets.at_rest import AtRest, Version, file_of, keep_files, versions_in


class SecretValues:
    """Secrets' values under `directory` (tmpfs); `key_file` holds the host's digest key."""

    def __init__(self, directory: Path, key_file: Path, at_rest: AtRest | None = None) -> None:
        self._directory = directory
        self._key_file = key_file
        self._key: bytes | None = None
        self.at_rest = at_rest or AtRest(directory / ".at-rest")

    def digest(self, value: str) -> str:
        """HMAC-SHA-256 (hex) with a key that never leaves the host: tells two values apart."""
        return hmac.new(self._host_key(), value.encode(), hashlib.sha256).hexdigest()

    def _host_key(self) -> bytes:
        if self._key is None:
            if not self._key_file.exists():
                write_atomic(self._key_file, secrets.token_bytes(32), mode=0o600)
            self._key = self._key_file.read_bytes()
        return self._key

    async def keep(
        self, deployment: DeploymentName, secret: str, version: int, value: str, *, new: bool
    ) -> None:
        """Keep a value, at rest too where that is on; `new`: of a version that nobody had.

        Raises StorageFullError; then nothing was kept.
        """
        if new:  # what a failed removal left may not become this version's value in a reboot
            self.at_rest.drop(deployment, (secret, version))
        self.put(deployment, secret, version, value)
        await self.at_rest.keep(deployment, (secret, version), value)

    async def fetch(self, deployment: DeploymentName, secret: str, version: int) -> str | None:
        """The value; from what is kept at rest if memory lost it. None: neither has it."""
        value = self.get(deployment, secret, version)
        if value is None:
            value = await self.at_rest.fetch(deployment, (secret, version))
            if value is not None:
                self.put(deployment, secret, version, value)
        return value

    def put(self, deployment: DeploymentName, secret: str, version: int, value: str) -> None:
        """Keep a value in memory. Raises StorageFullError; then nothing was kept."""
        make_private_directory(self._directory)
        make_private_directory(self._directory / deployment)
        write_atomic(self._path(deployment, secret, version), value.encode(), mode=0o600)

    def get(self, deployment: DeploymentName, secret: str, version: int) -> str | None:
        """The value, or None when the host was rebooted since."""
        try:
            return self._path(deployment, secret, version).read_bytes().decode()
        except FileNotFoundError:
            return None

    def here(self, deployment: DeploymentName) -> frozenset[Version]:
        """Names and versions whose value is in memory."""
        return versions_in(self._directory / deployment)

    def missing(self, deployment: DeploymentName, versions: Mapping[str, int]) -> tuple[str, ...]:
        """The names whose value is neither in memory nor, as far as is known, at rest."""
        there = self.here(deployment) | self.at_rest.here(deployment)
        return tuple(sorted(name for name, _ in versions.items() - there))

    def keep_only(self, deployment: DeploymentName, wanted: set[Version]) -> None:
        """Remove every value of the deployment that is not wanted any more."""
        keep_files(self._directory / deployment, wanted)
        self.at_rest.keep_only(deployment, wanted)

    def forget(self, deployment: DeploymentName) -> None:
        """Remove every value of a deployment."""
        shutil.rmtree(self._directory / deployment, ignore_errors=True)
        self.at_rest.forget(deployment)

    def forget_others(self, names: set[DeploymentName]) -> None:
        """Remove what belongs to no known deployment."""
        self.at_rest.forget_others(names)
        if self._directory.is_dir():
            for entry in self._directory.iterdir():
                if entry.name not in names:
                    self.forget(DeploymentName(entry.name))

    def _path(self, deployment: DeploymentName, secret: str, version: int) -> Path:
        return self._directory / deployment / file_of((secret, version))
