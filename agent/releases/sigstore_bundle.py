"""A Sigstore bundle held against a trusted root, offline: what was signed, by which certificate.

Sources: Sigstore bundle 0.3, DSSE envelope 1.0, RFC 6962 for logs. Invariant: what is returned was
signed once, by a certificate that an authority of the root issued and logged, at a moment at which
that authority, both logs' keys and the certificate were valid, and the log's proof of it holds.
Who may sign, and what, is the caller's to ask. The library is an extra, imported with the first
bundle; nothing is asked over the network.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from agent.releases.sigstore_json import BundleError, first_line, read_json
from agent.releases.trusted_root import Used, narrow

if TYPE_CHECKING:
    from cryptography.x509 import Certificate
    from sigstore.models import Bundle, TrustedRoot

# How the library's refusals begin → our codes. Anything else is `bundle_malformed`.
_SAYS = {
    "failed to build timestamp certificate chain": "certificate_chain",
    "Key usage": "certificate_chain",
    "Extended usage": "certificate_chain",
    "failed to verify SCT": "sct_signature",
    "invalid signing cert": "certificate_expired",
    "not enough sources of verified time": "time_missing",
    "no Timestamp Authorities": "time_missing",
    "Invalid Timestamp": "time_missing",
    "too many signed timestamp": "time_missing",
    "duplicate timestamp": "time_missing",
    "invalid log entry: ('Inclusion proof contains invalid root": "checkpoint_root",
    "invalid log entry": "log_inclusion",
    "log entry": "log_inclusion",
    "invalid DSSE log entry": "log_inclusion",
    "transparency log entry": "log_inclusion",
    "DSSE: invalid signature": "dsse_signature",
}


@dataclass(frozen=True, slots=True)
class Signed:
    """What holds. `moments`: when it was signed, by every clock that vouches for it."""

    certificate: Certificate
    payload_type: str
    payload: bytes
    moments: tuple[dt.datetime, ...]
    logged_at: dt.datetime | None
    log: bytes


class _LogId(msgspec.Struct, frozen=True, rename="camel"):
    key_id: str


class _Checkpoint(msgspec.Struct, frozen=True):
    envelope: str = ""


class _Proof(msgspec.Struct, frozen=True, rename="camel"):
    root_hash: str = ""
    checkpoint: _Checkpoint | None = None


class _Entry(msgspec.Struct, frozen=True, rename="camel"):
    log_id: _LogId
    integrated_time: str | None = None
    inclusion_promise: dict[str, Any] | None = None
    inclusion_proof: _Proof | None = None


class _Material(msgspec.Struct, frozen=True, rename="camel"):
    tlog_entries: tuple[_Entry, ...] = ()
    chain: msgspec.UnsetType | object = msgspec.field(
        default=msgspec.UNSET, name="x509CertificateChain"
    )
    timestamp_verification_data: dict[str, Any] | None = None

    @property
    def stamped(self) -> bool:
        """Whether a timestamp authority says when it was signed."""
        return bool((self.timestamp_verification_data or {}).get("rfc3161Timestamps"))


class _Envelope(msgspec.Struct, frozen=True, rename="camel"):
    signatures: tuple[dict[str, Any], ...]


class Outline(msgspec.Struct, frozen=True, rename="camel"):
    """Of a bundle, what the library reads leniently, or does not tell."""

    dsse_envelope: _Envelope
    verification_material: _Material


def outline(bundle: bytes) -> Outline:
    """Raises BundleError."""
    return read_json(bundle, Outline, "the bundle")


def verify_bundle(bundle: bytes, trusted_root: bytes) -> Signed:
    """Signature, chain, logs and times. Raises BundleError, ImportError without the library."""
    from sigstore.verify import Verifier

    _library_root(trusted_root)  # whole, before what is wrong with it is told as the bundle's
    read = outline(bundle)
    if read.verification_material.chain is not msgspec.UNSET:
        raise BundleError(
            "bundle_malformed",
            "it is of a version before 0.3 (x509CertificateChain): sign with a newer signer",
        )
    signatures, entries = read.dsse_envelope.signatures, read.verification_material.tlog_entries
    if len(signatures) != 1:
        raise BundleError("bundle_malformed", f"it has {len(signatures)} signatures, not one")
    if len(entries) != 1:
        raise BundleError("log_entries", f"it has {len(entries)} entries of logs, not one")
    if _logged_at(entries[0]) is None and not read.verification_material.stamped:
        raise BundleError("time_missing", "nobody vouches for when it was signed")
    parsed = _parsed(bundle)
    used, certificate = _used(entries[0], parsed), parsed.signing_certificate
    _require_valid(certificate, used.moments)
    root = _library_root(narrow(trusted_root, used))
    try:
        kind, payload = Verifier(trusted_root=root).verify_dsse(parsed, _Anyone())
    except Exception as error:  # a stranger's bundle: whatever fails in it refuses it
        raise _refusal(error, entries[0]) from error
    return Signed(
        certificate=certificate,
        payload_type=kind,
        payload=payload,
        moments=used.moments,
        logged_at=_logged_at(entries[0]),
        log=used.log,
    )


class _Anyone:
    """The library's protocol of a policy. Who may sign is asked of what holds."""

    def verify(self, cert: Certificate) -> None:
        """Any certificate will do here."""


def logs_of(certificate: Certificate) -> list[tuple[bytes, dt.datetime]]:
    """The logs that promised to log a certificate, and when: its SCTs. Raises BundleError."""
    from cryptography import x509

    kind = x509.PrecertificateSignedCertificateTimestamps
    try:
        found = certificate.extensions.get_extension_for_class(kind).value
        return [(one.log_id, one.timestamp.replace(tzinfo=dt.UTC)) for one in found]
    except x509.ExtensionNotFound:
        return []
    except Exception as error:  # a stranger's certificate: whatever fails in it refuses it
        raise BundleError("certificate_chain", "its certificate cannot be read") from error


def _library_root(data: bytes) -> TrustedRoot:
    """The library reads one from a file only: so it gets a file in memory."""
    from sigstore.models import TrustedRoot

    with os.fdopen(os.memfd_create("trusted_root", os.MFD_CLOEXEC), "wb", buffering=0) as file:
        file.write(data)
        try:
            return TrustedRoot.from_file(f"/proc/self/fd/{file.fileno()}")
        except Exception as error:  # its parsers' errors have no common root
            raise BundleError("trusted_root", first_line(error)) from error


def _parsed(bundle: bytes) -> Bundle:
    from sigstore.models import Bundle

    try:
        return Bundle.from_json(bundle)
    except Exception as error:  # its parsers' errors have no common root
        raise BundleError("bundle_malformed", f"it cannot be read: {first_line(error)}") from error


def _used(entry: _Entry, parsed: Bundle) -> Used:
    promised = logs_of(parsed.signing_certificate)
    if not promised:
        raise BundleError("sct_missing", "its certificate was logged nowhere: it has no SCT")
    if len(dict(promised)) != len(promised):
        raise BundleError("sct_duplicate_log", "its certificate has two SCTs of one log")
    if len(promised) > 1:
        raise BundleError("sct_several", f"its certificate has {len(promised)} SCTs, not one")
    return Used(log=_log(entry), promised=dict(promised), moments=_moments(entry, parsed))


def _moments(entry: _Entry, parsed: Bundle) -> tuple[dt.datetime, ...]:
    """Of the log, if it promised that moment, and of timestamp authorities. None is proven yet."""
    logged = _logged_at(entry)
    try:
        data = parsed.verification_material.timestamp_verification_data
        stamped = [one.tst_info.gen_time for one in data.rfc3161_timestamps] if data else []
    except Exception as error:  # a stranger's timestamps
        raise BundleError("time_missing", f"a timestamp cannot be read: {error}") from error
    return tuple([logged, *stamped] if logged is not None else stamped)


def _logged_at(entry: _Entry) -> dt.datetime | None:
    if not entry.integrated_time or entry.inclusion_promise is None:
        return None
    try:
        return dt.datetime.fromtimestamp(int(entry.integrated_time), dt.UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise BundleError("bundle_malformed", "its integratedTime is no moment") from error


def _log(entry: _Entry) -> bytes:
    try:
        return base64.b64decode(entry.log_id.key_id, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BundleError("bundle_malformed", "its log's keyId is not base64") from error


def _require_valid(certificate: Certificate, moments: tuple[dt.datetime, ...]) -> None:
    first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    for moment in moments:
        if not first <= moment <= last:
            raise BundleError(
                "certificate_expired",
                f"it was signed at {moment:%FT%TZ}, its certificate is valid "
                f"{first:%FT%TZ} to {last:%FT%TZ}",
            )


def _refusal(error: Exception, entry: _Entry) -> BundleError:
    said = first_line(error)
    code = next((code for start, code in _SAYS.items() if said.startswith(start)), None)
    if said.startswith("invalid log entry: checkpoint") and not _same_root(entry):
        code = "checkpoint_root"
    return BundleError(code or "bundle_malformed", f"it does not verify: {said}")


def _same_root(entry: _Entry) -> bool:
    """Whether the checkpoint, whose signature is wrong, is at least of the proof's tree."""
    proof = entry.inclusion_proof
    lines = proof.checkpoint.envelope.split("\n") if proof and proof.checkpoint else []
    return proof is not None and proof.root_hash in lines[2:3]
