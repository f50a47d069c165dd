"""A release's signature: who built exactly these bytes, told offline by a pinned root.

Sources: in-toto Statement 1; the certificate's extensions are those of Fulcio
(1.3.6.1.4.1.57264.1). Invariant: a manifest that passes has a Sigstore bundle that holds under the
operator's trusted root and nothing else, signed by a workflow of the configured identity, on the
forge's own runner, for this repository and this tag.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from agent.config import SignatureConfig
from agent.errors import AgentError
from agent.host.files import StorageError, read_bounded
from agent.releases.naming import SIGNATURE
from agent.releases.port import ReleaseError
from agent.releases.sigstore_bundle import verify_bundle
from agent.releases.sigstore_json import BundleError, read_json

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

MAX_BUNDLE_BYTES = 1 << 20
MAX_ROOT_BYTES = 1 << 20
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_STATEMENTS = frozenset({"https://in-toto.io/Statement/v1", "https://in-toto.io/Statement/v0.1"})
_FORGE = "https://github.com"
_FULCIO = "1.3.6.1.4.1.57264.1"
_ISSUER, _RUNNER, _SOURCE, _SOURCE_REF = 8, 11, 12, 14
_NAMES = {
    _ISSUER: "issuer",
    _RUNNER: "runner environment",
    _SOURCE: "source repository",
    _SOURCE_REF: "source ref",
}


class SignatureRequiredError(ReleaseError):
    """Signed releases are asked for, and this one is not, or not as it must be."""

    @property
    def code(self) -> str:
        return "signature_required"


class _Subject(msgspec.Struct, frozen=True):
    digest: dict[str, str]


class _Statement(msgspec.Struct, frozen=True):
    kind: str = msgspec.field(name="_type")
    predicate_type: str = msgspec.field(name="predicateType")
    subject: tuple[_Subject, ...]


class _WrongError(AgentError):
    """What is wrong with a signature that holds."""


class SignatureRule:
    """Whose signature a release needs. `check` blocks: call it in a thread."""

    def __init__(self, config: SignatureConfig) -> None:
        self._config = config

    def check(self, repo: str, tag: str, digest: str, bundle: bytes | None) -> None:
        """That the manifest with this SHA-256, in hex, is signed as it must be.

        Raises SignatureRequiredError with what is wrong, or with the setting to mend.
        """
        if bundle is None:
            raise SignatureRequiredError(
                f"{repo} {tag} is not signed: there is no {SIGNATURE} beside its manifest"
            )
        try:
            builder = Builder.of(self._config, repo, tag)
            self._require(builder, digest, bundle)
        except (BundleError, _WrongError) as error:
            raise SignatureRequiredError(f"{repo} {tag}: {SIGNATURE}: {error}") from error

    def _require(self, builder: Builder, digest: str, bundle: bytes) -> None:
        path, root = self._trusted_root()
        try:
            signed = verify_bundle(bundle, root)
        except ImportError as error:
            raise SignatureRequiredError(
                "releases.require_signature needs the extra: pip install 'enclave-agent[sigstore]'"
            ) from error
        except BundleError as error:
            if error.code != "trusted_root":
                raise
            raise SignatureRequiredError(
                f"releases.signature.trusted_root: {path} cannot be used: {error}"
            ) from error
        if signed.payload_type != _PAYLOAD_TYPE:
            raise _WrongError(f"its payload is of type {signed.payload_type[:80]!r}")
        builder.verify(signed.certificate)
        _require_statement(signed.payload, digest, self._config.predicate_type)

    def _trusted_root(self) -> tuple[Path, bytes]:
        path = self._config.trusted_root
        if path is None:
            raise SignatureRequiredError(
                "releases.signature.trusted_root: must be set: the file that pins Sigstore's keys"
            )
        try:
            return path, read_bounded(path, MAX_ROOT_BYTES)
        except StorageError as error:
            raise SignatureRequiredError(
                f"releases.signature.trusted_root: {path} cannot be used: {error}"
            ) from error


@dataclass(frozen=True, slots=True)
class Builder:
    """The certificate that may sign: its one name, and its extensions below Fulcio's OID."""

    name: str
    extensions: Mapping[int, str]

    @classmethod
    def of(cls, config: SignatureConfig, repo: str, tag: str) -> Builder:
        repository = config.repository.replace("{repo}", repo)
        if repository.count("/") != 1:
            raise _WrongError(
                f"releases.signature.repository: {repository!r} is no OWNER/NAME; name the owner"
            )
        name = config.identity.replace("{repository}", repository).replace("{tag}", tag)
        ref = f"refs/tags/{tag}"
        # Where it was built, by which build file of which commit: a reusable workflow of another
        # repository has that one's name in the certificate, and the caller's in 12 and 14.
        extensions = {
            _ISSUER: config.issuer,
            _RUNNER: "github-hosted",
            _SOURCE: f"{_FORGE}/{repository}",
            _SOURCE_REF: ref,
        }
        return cls(name, extensions)

    def verify(self, cert: Certificate) -> None:
        """That this certificate is the one. Raises _WrongError."""
        from cryptography import x509

        try:
            found_names = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        except x509.ExtensionNotFound as error:
            raise _WrongError("its certificate names nobody") from error
        names = list(found_names.value)
        if names != [x509.UniformResourceIdentifier(self.name)]:
            found = ", ".join(str(one.value) for one in names)
            raise _WrongError(f"it was signed by {found[:300]!r}, not by {self.name!r}")
        for number, wanted in self.extensions.items():
            oid = x509.ObjectIdentifier(f"{_FULCIO}.{number}")
            try:
                extension = cert.extensions.get_extension_for_oid(oid).value
            except x509.ExtensionNotFound as error:
                raise _WrongError(f"its certificate has no {_NAMES[number]}") from error
            found_der = extension.public_bytes()
            if found_der != _utf8_string(wanted):
                raise _WrongError(
                    f"its certificate's {_NAMES[number]} is {found_der[2:202]!r}, not {wanted!r}"
                )


def _require_statement(payload: bytes, digest: str, predicate_type: str | None) -> None:
    statement = read_json(payload, _Statement, "its statement")
    if statement.kind not in _STATEMENTS:
        raise _WrongError(f"its statement is of type {statement.kind[:80]!r}")
    if predicate_type is not None and statement.predicate_type != predicate_type:
        raise _WrongError(
            f"it states {statement.predicate_type[:120]!r}, not {predicate_type!r} "
            "(releases.signature.predicate_type)"
        )
    if len(statement.subject) != 1:
        raise _WrongError(f"its statement is about {len(statement.subject)} things, not one")
    found = statement.subject[0].digest.get("sha256")
    if found != digest:
        raise _WrongError(f"it is about a manifest with SHA-256 {found!r}, this one's is {digest}")


def _utf8_string(text: str) -> bytes:
    """DER (X.690, 8.1.3): as Fulcio writes its newer extensions."""
    data = text.encode()
    size = bytes([len(data)]) if len(data) < 0x80 else bytes([0x82]) + len(data).to_bytes(2)
    if 0x80 <= len(data) <= 0xFF:
        size = bytes([0x81, len(data)])
    return b"\x0c" + size + data
