"""Stage verify-sigstore: a bundle under the trust root of the case, and its policy.

The bundle is held against the root by the very code that admits releases. Where that is stricter
than a case asks (it takes one log entry and one SCT, neither fewer nor more), nothing is claimed:
such a case is unsupported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from agent.attestation.evidence import EvidenceError
from agent.attestation.measurement import MeasurementKind, read_measurement
from agent.releases.sigstore_bundle import Signed, logs_of, outline, verify_bundle
from agent.releases.sigstore_json import BundleError, read_json
from scripts.conformance_contract.inputs import (
    SigstoreDefaults,
    SigstoreEvidence,
    from_base64,
    from_hex,
)
from scripts.conformance_contract.outcome import Accepted, Rejected, Unsupported, rejection
from scripts.conformance_contract.sev import moment

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

STAGE = "verify-sigstore"
OTHER = "BUNDLE_MALFORMED"
CODES = {
    "bundle_malformed": "BUNDLE_MALFORMED",
    "trusted_root": "TRUST_ROOT_INVALID",
    "log_entries": "TLOG_COUNT_OUT_OF_RANGE",
    "log_unknown": "REKOR_KEY_NOT_TRUSTED",
    "log_inclusion": "REKOR_INCLUSION_INVALID",
    "checkpoint_root": "CHECKPOINT_ROOT_MISMATCH",
    "sct_missing": "SCT_INSUFFICIENT",
    "sct_log_unknown": "SCT_INSUFFICIENT",
    "sct_signature": "SCT_INSUFFICIENT",
    "sct_duplicate_log": "SCT_DUPLICATE_LOG",
    "time_missing": "OBSERVER_TIMESTAMP_INSUFFICIENT",
    "certificate_expired": "CERT_EXPIRED",
    "certificate_chain": "FULCIO_CHAIN_INVALID",
    "dsse_signature": "DSSE_SIGNATURE_INVALID",
}
# What a policy may ask none of, and we always ask for.
_MINIMUMS = {
    "sct_missing": "sct_min",
    "time_missing": "observer_timestamps_min",
}
_FULCIO = "1.3.6.1.4.1.57264.1"
_ISSUER_V1, _REPOSITORY, _REF, _ISSUER = 1, 5, 6, 8


class _Subject(msgspec.Struct, frozen=True):
    digest: dict[str, str] = {}
    name: str | None = None


class _Statement(msgspec.Struct, frozen=True):
    kind: str = msgspec.field(name="_type")
    predicate_type: str = msgspec.field(name="predicateType")
    subject: tuple[_Subject, ...] = ()
    predicate: Any = None


class _TdxRegisters(msgspec.Struct, frozen=True):
    rtmr1: str
    rtmr2: str


class _Predicate(msgspec.Struct, frozen=True):
    """Of a release."""

    snp_measurement: str
    tdx_measurement: _TdxRegisters


@dataclass(frozen=True, slots=True)
class Proven:
    """What a bundle proves. `measurement`: as the contract names it; None where it has none."""

    outputs: dict[str, Any]
    measurement: dict[str, Any] | None


def verify(given: SigstoreEvidence) -> Accepted:
    """Raises Rejected, Malformed, Unsupported."""
    return Accepted(believe(given).outputs)


def believe(given: SigstoreEvidence) -> Proven:
    """What is signed, once it holds and every demand of the policy is met."""
    bundle = from_base64(given.bundle_b64, "bundle_b64")
    digest = from_hex(given.expected_digest_sha256_hex, "expected_digest_sha256_hex", 32).hex()
    try:
        entries = _count_entries(bundle, given.policy)
        signed = verify_bundle(bundle, from_base64(given.trust_root_b64, "trust_root_b64"))
        statement = read_json(signed.payload, _Statement, "its statement")
    except ImportError as error:
        raise Unsupported("Sigstore bundles need the extra enclave-agent[sigstore]") from error
    except BundleError as error:
        raise _refused(error, given.policy) from error
    _require_times(signed, given)
    builder = _builder(signed.certificate, given)
    measurement = _measurement(signed, statement, given.policy, digest)
    return Proven(_outputs(signed, statement, builder, measurement, entries), measurement)


def _count_entries(bundle: bytes, policy: SigstoreDefaults) -> int:
    count, most = len(outline(bundle).verification_material.tlog_entries), policy.tlog_entries_max
    if count < policy.tlog_entries_min or (most is not None and count > most):
        raise BundleError("log_entries", f"it has {count} entries of logs")
    if count != 1:
        raise Unsupported(f"{count} entries of logs: this verifier takes exactly one")
    return count


def _refused(error: BundleError, policy: SigstoreDefaults) -> Rejected | Unsupported:
    if error.code == "sct_several":
        return Unsupported(f"{error}: this verifier takes exactly one")
    minimum = _MINIMUMS.get(error.code)
    if minimum is not None and getattr(policy, minimum) == 0:
        return Unsupported(f"{minimum} 0: this verifier always wants one ({error})")
    return rejection(CODES, error.code, str(error), other=OTHER)


def _require_times(signed: Signed, given: SigstoreEvidence) -> None:
    """The contract compares the certificate, too, with the moment of verification."""
    policy, certificate = given.policy, signed.certificate
    if policy.sct_min > 1:
        raise Rejected("SCT_INSUFFICIENT", f"1 SCT, not {policy.sct_min}")
    if len(signed.moments) < policy.observer_timestamps_min:
        raise Rejected(
            "OBSERVER_TIMESTAMP_INSUFFICIENT",
            f"{len(signed.moments)} vouch for when it was signed, "
            f"not {policy.observer_timestamps_min}",
        )
    if policy.observer_timestamps_min > 1:
        raise Unsupported("observer_timestamps_min: no more than one is counted as proven")
    if given.verification_time_unix is None:
        return
    now = moment(given.verification_time_unix)
    if any(at > now for at in signed.moments):
        raise Rejected("OBSERVER_TIMESTAMP_INSUFFICIENT", "it was signed after this moment")
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        until = certificate.not_valid_after_utc
        raise Rejected("CERT_EXPIRED", f"its certificate is valid until {until:%FT%TZ}")


def _builder(certificate: Certificate, given: SigstoreEvidence) -> dict[str, str]:
    """Who signed: the outputs, once they are who the case wants."""
    policy = given.policy
    old, new = _text(certificate, _ISSUER_V1), _text(certificate, _ISSUER, der=True)
    if {old, new} - {None} != {policy.oidc_issuer}:
        raise Rejected("OIDC_ISSUER_MISMATCH", f"issuer {new or old!r}")
    repository, ref = _text(certificate, _REPOSITORY), _text(certificate, _REF)
    if repository != given.repo:
        raise Rejected("WORKFLOW_REPOSITORY_MISMATCH", f"repository {repository!r}")
    if ref is None or not ref.startswith(policy.workflow_ref_prefix):
        raise Rejected("WORKFLOW_REF_PREFIX_MISMATCH", f"ref {ref!r}")
    return {
        "cert_oidc_issuer": policy.oidc_issuer,
        "cert_workflow_ref": ref,
        "cert_workflow_repository": repository,
        "cert_workflow_signer_uri": _signer(certificate),
    }


def _text(certificate: Certificate, number: int, *, der: bool = False) -> str | None:
    """An extension of the authority's: text as it is, or as a DER UTF8String."""
    from cryptography import x509

    oid = x509.ObjectIdentifier(f"{_FULCIO}.{number}")
    try:
        data = certificate.extensions.get_extension_for_oid(oid).value.public_bytes()
    except x509.ExtensionNotFound:
        return None
    if der:
        length = 2 if data[1:2] < b"\x80" else 2 + (data[1] & 0x7F)
        data = data[length:] if data[:1] == b"\x0c" else b""
    return data.decode("utf-8", "replace")


def _signer(certificate: Certificate) -> str:
    from cryptography import x509

    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return ", ".join(names.get_values_for_type(x509.UniformResourceIdentifier))


def _measurement(
    signed: Signed, statement: _Statement, policy: SigstoreDefaults, digest: str
) -> dict[str, Any] | None:
    """Of the statement, once it is of a kind that may be, and about the right thing."""
    if signed.payload_type != policy.payload_type:
        raise Rejected("PAYLOAD_TYPE_MISMATCH", f"payload of type {signed.payload_type[:80]!r}")
    kinds, predicates = policy.in_toto_statement_types_allowed, policy.predicate_types_allowed
    if kinds is not None and statement.kind not in kinds:
        raise Rejected("IN_TOTO_STATEMENT_TYPE_NOT_ALLOWED", f"statement {statement.kind[:80]!r}")
    if predicates is not None and statement.predicate_type not in predicates:
        raise Rejected(
            "PREDICATE_TYPE_NOT_ALLOWED", f"predicate {statement.predicate_type[:80]!r}"
        )
    if not statement.subject:
        raise Rejected("SUBJECT_MISSING", "it is about nothing")
    found = statement.subject[0].digest.get("sha256", "")
    if found.lower() != digest:
        raise Rejected("SUBJECT_DIGEST_MISMATCH", f"it is about SHA-256 {found[:80]!r}")
    if statement.predicate_type != MeasurementKind.RELEASE:
        return None
    try:
        predicate = msgspec.convert(statement.predicate, _Predicate)
        registers = [
            predicate.snp_measurement,
            predicate.tdx_measurement.rtmr1,
            predicate.tdx_measurement.rtmr2,
        ]
        read = read_measurement(MeasurementKind.RELEASE, registers)
    except (msgspec.ValidationError, EvidenceError) as error:
        raise Rejected("PREDICATE_MEASUREMENT_INVALID", str(error)) from error
    shown = [register.hex() for register in read.registers]
    return {"type": str(MeasurementKind.RELEASE), "registers": shown}


def _outputs(
    signed: Signed,
    statement: _Statement,
    builder: dict[str, str],
    measurement: dict[str, Any] | None,
    entries: int,
) -> dict[str, Any]:
    outputs: dict[str, Any] = {
        "predicate_type": statement.predicate_type,
        "in_toto_statement_type": statement.kind,
        "subject_name": statement.subject[0].name or "",
        "subject_digest_sha256_hex": statement.subject[0].digest["sha256"].lower(),
        **builder,
        "rekor_log_id_hex": signed.log.hex(),
        "tlog_entry_count": entries,
        "sct_count": len(logs_of(signed.certificate)),
    }
    if measurement is not None:
        outputs["measurement"] = measurement
    if signed.logged_at is not None:
        outputs["rekor_integrated_time_unix"] = int(signed.logged_at.timestamp())
    return outputs
