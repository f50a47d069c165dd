"""Values of secrets: on the agent's tmpfs only, one private file a version.

The store knows names, versions and keyed digests; values are here and nowhere else. A file is
written before the version is recorded, so that a recorded version has its value until the host
reboots; files that no record names are removed at start.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

from agent.host.files import make_private_directory, write_atomic
from agent.model.ids import DeploymentName


class Vault:
    """Secrets' values under `directory` (tmpfs); `key_file` holds the host's digest key."""

    def __init__(self, directory: Path, key_file: Path) -> None:
        self._directory = directory
        self._key_file = key_file
        self._key: bytes | None = None

    def digest(self, value: str) -> str:
        """HMAC-SHA-256 (hex) with a key that never leaves the host: tells two values apart."""
        return hmac.new(self._host_key(), value.encode(), hashlib.sha256).hexdigest()

    def _host_key(self) -> bytes:
        if self._key is None:
            if not self._key_file.exists():
                write_atomic(self._key_file, secrets.token_bytes(32), mode=0o600)
            self._key = self._key_file.read_bytes()
        return self._key

    def put(self, deployment: DeploymentName, secret: str, version: int, value: str) -> None:
        """Keep a value. Raises StorageFullError; then nothing was kept."""
        make_private_directory(self._directory)
        make_private_directory(self._directory / deployment)
        write_atomic(self._path(deployment, secret, version), value.encode(), mode=0o600)

    def get(self, deployment: DeploymentName, secret: str, version: int) -> str | None:
        """The value, or None when the host was rebooted since."""
        try:
            return self._path(deployment, secret, version).read_text()
        except FileNotFoundError:
            return None

    def here(self, deployment: DeploymentName) -> frozenset[tuple[str, int]]:
        """Names and versions whose value is here."""
        try:
            files = os.listdir(self._directory / deployment)  # noqa: PTH208 - in every turn
        except FileNotFoundError:
            return frozenset()
        found = (file.rpartition(".") for file in files if not file.startswith("."))
        return frozenset((name, int(version)) for name, _, version in found)

    def missing(self, deployment: DeploymentName, versions: Mapping[str, int]) -> tuple[str, ...]:
        """The names whose value is not here."""
        return tuple(
            name
            for name, version in sorted(versions.items())
            if not self._path(deployment, name, version).exists()
        )

    def keep_only(self, deployment: DeploymentName, wanted: set[tuple[str, int]]) -> None:
        """Remove every value of the deployment that is not wanted any more."""
        folder = self._directory / deployment
        keep = {self._path(deployment, name, version).name for name, version in wanted}
        if folder.is_dir():
            for path in folder.iterdir():
                if path.name not in keep:
                    path.unlink(missing_ok=True)

    def forget(self, deployment: DeploymentName) -> None:
        """Remove every value of a deployment."""
        shutil.rmtree(self._directory / deployment, ignore_errors=True)

    def forget_others(self, names: set[DeploymentName]) -> None:
        """Remove what belongs to no known deployment."""
        if self._directory.is_dir():
            for entry in self._directory.iterdir():
                if entry.name not in names:
                    self.forget(DeploymentName(entry.name))

    def _path(self, deployment: DeploymentName, secret: str, version: int) -> Path:
        return self._directory / deployment / f"{secret}.{version}"
