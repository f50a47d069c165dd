"""Identifiers: opaque strings with a form that fits tap names, unit names and socket paths."""

from __future__ import annotations

import re
import secrets
from typing import NewType

HostId = NewType("HostId", str)
DeploymentName = NewType("DeploymentName", str)
EnclaveId = NewType("EnclaveId", str)
UpdateId = NewType("UpdateId", str)
LeaseId = NewType("LeaseId", str)
Bdf = NewType("Bdf", str)

_BASE32 = "abcdefghijklmnopqrstuvwxyz234567"
_DEPLOYMENT = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,127}")
_REPO_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")


def _random(length: int) -> str:
    return "".join(secrets.choice(_BASE32) for _ in range(length))


def new_enclave_id() -> EnclaveId:
    """8 base32 characters: `enc-<id>` fits an interface name (15 bytes)."""
    return EnclaveId(_random(8))


def new_update_id() -> UpdateId:
    """16 base32 characters."""
    return UpdateId(_random(16))


def new_lease_id() -> LeaseId:
    """16 base32 characters."""
    return LeaseId(_random(16))


def parse_deployment_name(text: str) -> DeploymentName:
    """Return the name, or raise ValueError with the rule."""
    if not _DEPLOYMENT.fullmatch(text):
        raise ValueError(
            "must be 1 to 63 of a-z, 0-9 and '-', beginning and ending with a letter or digit"
        )
    return DeploymentName(text)


def parse_tag(text: str) -> str:
    """Return a release tag that is safe as one path component, or raise ValueError."""
    if not _TAG.fullmatch(text):
        raise ValueError(
            "must be 1 to 128 of letters, digits, '.', '_', '+' and '-', not beginning with "
            "'.', '+' or '-'"
        )
    return text


def parse_repo(text: str) -> str:
    """Return a release repo (`name` or `owner/name`), or raise ValueError."""
    parts = text.split("/")
    if len(parts) > 2 or not all(_REPO_PART.fullmatch(part) for part in parts):
        raise ValueError("must be NAME or OWNER/NAME of letters, digits, '.', '_' and '-'")
    return text


def parse_variable_name(text: str) -> str:
    """Return the name of a variable or secret, or raise ValueError."""
    if not _VARIABLE.fullmatch(text):
        raise ValueError("must be a letter or '_', then up to 127 letters, digits and '_'")
    return text
