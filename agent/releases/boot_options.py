"""What a workload config says of its guest's boot, as far as it concerns the host. Pure.

A value that the guest alone has to judge is not complained of here: it then says nothing.
"""

from __future__ import annotations

import re

from agent.releases.fields import Field

# Of these two the issuer of the certificate comes to the deployment's public address.
_AT_THE_ADDRESS = ("http", "tls")
_KEEPERS = ("vault-url", "kbs-url", "keyserver-url")  # as releases of the image named it
_PUBLIC_SOURCE = "tinfoilsh/cvmimage"  # whose versions are the public contract's
_SOURCE = re.compile(r"[A-Za-z0-9_.-]{1,100}(/[A-Za-z0-9_.-]{1,100})?")
_SOURCE_RULE = "must be OWNER/NAME of letters, digits, '.', '_' and '-'"


def tls_challenge(root: Field) -> str:
    """`http` or `tls` if the guest proves its name at the public address; else empty."""
    said = _shim_value(root, "tls-challenge")
    return said if isinstance(said, str) and said in _AT_THE_ADDRESS else ""


def dummy_attestation(root: Field) -> bool:
    """Whether the guest is told to give a dummy report in place of evidence."""
    return _shim_value(root, "dummy-attestation") is True


def fetches_secrets(root: Field) -> bool:
    """Whether the guest fetches what it is not given, from a keeper of secrets."""
    fields = (root.optional(name) for name in _KEEPERS)
    return any(isinstance(field.value, str) and field.value for field in fields if field)


def cvm_source(root: Field) -> str | None:
    """Whose image it is, if not the public one's. Raises ReleaseFieldError."""
    field = root.optional("cvm-source")
    if field is None:
        return None
    repo = field if isinstance(field.value, str) else field.member("repo")
    name = repo.text(_SOURCE, _SOURCE_RULE)
    return None if name.lower() == _PUBLIC_SOURCE else name


def _shim_value(root: Field, name: str) -> object:
    shim = root.optional("shim")
    if shim is None or not isinstance(shim.value, dict):
        return None
    return shim.value.get(name)
