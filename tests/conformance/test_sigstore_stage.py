"""Bundles of a Sigstore of our own: each flaw is refused for its own reason, in public words."""

from __future__ import annotations

import base64
import datetime as dt
import json
from collections.abc import Callable
from typing import Any

import jsonschema_rs
import pytest

from scripts.conformance_contract import full, sigstore
from scripts.conformance_contract.capabilities import capabilities
from scripts.conformance_contract.outcome import Exit
from scripts.conformance_contract.stages import answer
from tests.fakes.sigstore import (
    DIGEST,
    ISSUER,
    MINUTE,
    NAME,
    NOW,
    PAYLOAD,
    REF,
    RELEASE,
    REPO,
    STATEMENT,
    YEAR,
    Signature,
    measurement,
    subject,
    trusted_root,
)
from tests.fakes.vectors import ROOT, case_input, needs_vectors

Json = dict[str, Any]
Change = Callable[[Json], None]
GOOD = Signature()
POLICY: Json = {
    "oidc_issuer": ISSUER,
    "workflow_ref_prefix": "refs/tags/",
    "predicate_types_allowed": [RELEASE],
    "in_toto_statement_types_allowed": [STATEMENT],
    "payload_type": PAYLOAD,
}


def packed(value: Json) -> str:
    return base64.b64encode(json.dumps(value).encode()).decode()


def evidence(signature: Signature = GOOD, change: Change | None = None, **policy: Any) -> Json:
    bundle = signature.bundle()
    if change is not None:
        change(bundle)
    return {
        "bundle_b64": packed(bundle),
        "expected_digest_sha256_hex": DIGEST,
        "repo": REPO,
        "policy": POLICY | policy,
        "trust_root_b64": packed(trusted_root()),
        "verification_time_unix": int((NOW + MINUTE).timestamp()),
    }


def asked(given: Json, stage: str = sigstore.STAGE) -> tuple[Exit, str | None]:
    """Exit code, and the code of the refusal; every output is of the contract's form."""
    found = answer(stage, json.dumps({"schema_version": "1"} | given).encode())
    if found.output is None:
        assert found.note
        return found.exit, None
    file = ROOT / "conformance" / "schemas" / f"{stage}.output.schema.json"
    if file.exists():
        jsonschema_rs.validate(json.loads(file.read_text()), found.output)
    return found.exit, found.output.get("rejection", {}).get("code")


def test_a_good_bundle_is_accepted_with_all_that_it_proves() -> None:
    found = answer(
        sigstore.STAGE, json.dumps({"schema_version": "1"} | evidence()).encode()
    ).output
    assert found is not None
    outputs = found["outputs"]
    assert outputs["measurement"] == {
        "type": RELEASE,
        "registers": ["aa" * 48, "bb" * 48, "cc" * 48],
    }
    assert outputs["subject_digest_sha256_hex"] == DIGEST
    assert outputs["cert_workflow_signer_uri"] == NAME
    assert (outputs["cert_workflow_ref"], outputs["cert_workflow_repository"]) == (REF, REPO)
    assert outputs["rekor_integrated_time_unix"] == int(NOW.timestamp())
    assert (outputs["tlog_entry_count"], outputs["sct_count"]) == (1, 1)
    assert asked(evidence()) == (Exit.ACCEPTED, None)


def entry(bundle: Json) -> Json:
    (one,) = bundle["verificationMaterial"]["tlogEntries"]
    return one


def entries(count: int) -> Change:
    def change(bundle: Json) -> None:
        bundle["verificationMaterial"]["tlogEntries"] = [entry(bundle)] * count

    return change


def another_payload(bundle: Json) -> None:
    payload = GOOD.but(predicate=measurement("dd" * 48)).payload()
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()


def without_promise(bundle: Json) -> None:
    del entry(bundle)["inclusionPromise"]


def another_sibling(bundle: Json) -> None:
    entry(bundle)["inclusionProof"]["hashes"] = [base64.b64encode(bytes(32)).decode()]


def garbled(bundle: Json) -> None:
    bundle["verificationMaterial"]["certificate"]["rawBytes"] = "AAAA"


def legacy(bundle: Json) -> None:
    """As signers before version 0.3 wrote it; the library still reads that."""
    material = bundle["verificationMaterial"]
    material["x509CertificateChain"] = {"certificates": [material.pop("certificate")]}
    bundle["mediaType"] = "application/vnd.dev.sigstore.bundle+json;version=0.2"


def both(bundle: Json) -> None:
    material = bundle["verificationMaterial"]
    material["x509CertificateChain"] = {"certificates": [material["certificate"]]}


def chain_of_none(bundle: Json) -> None:
    bundle["verificationMaterial"]["x509CertificateChain"] = None


BUNDLES: list[tuple[str, Signature, Change | None]] = [
    ("BUNDLE_MALFORMED", GOOD, garbled),
    ("BUNDLE_MALFORMED", GOOD, legacy),
    ("BUNDLE_MALFORMED", GOOD, both),
    ("BUNDLE_MALFORMED", GOOD, chain_of_none),
    ("BUNDLE_MALFORMED", GOOD, lambda bundle: bundle.pop("dsseEnvelope")),
    ("DSSE_SIGNATURE_INVALID", GOOD.but(signed_by="another"), None),
    ("DSSE_SIGNATURE_INVALID", GOOD, another_payload),
    ("FULCIO_CHAIN_INVALID", GOOD.but(issued_by="another"), None),
    ("CERT_EXPIRED", GOOD.but(at=NOW - 5 * MINUTE), None),
    ("CERT_EXPIRED", GOOD.but(end=NOW - MINUTE / 2), None),
    ("CERT_EXPIRED", GOOD.but(end=NOW + MINUTE / 2), None),  # signed in time, verified too late
    ("SCT_INSUFFICIENT", GOOD.but(scts=()), None),
    ("SCT_INSUFFICIENT", GOOD.but(scts=("unknown",)), None),
    ("SCT_INSUFFICIENT", GOOD.but(sct_signed_by="more certificates"), None),
    ("SCT_DUPLICATE_LOG", GOOD.but(scts=("certificates",) * 2), None),
    ("TLOG_COUNT_OUT_OF_RANGE", GOOD, entries(0)),
    ("REKOR_INCLUSION_INVALID", GOOD, another_sibling),
    ("REKOR_INCLUSION_INVALID", GOOD.but(promise_signed_by="second log"), None),
    ("REKOR_INCLUSION_INVALID", GOOD.but(checkpoint_signed_by="second log"), None),
    ("REKOR_INCLUSION_INVALID", GOOD.but(logged_payload=b"{}"), None),
    ("REKOR_KEY_NOT_TRUSTED", GOOD.but(log="unknown"), None),
    ("CHECKPOINT_ROOT_MISMATCH", GOOD.but(checkpoint_root=bytes(32)), None),
    ("OBSERVER_TIMESTAMP_INSUFFICIENT", GOOD, without_promise),
    ("OBSERVER_TIMESTAMP_INSUFFICIENT", GOOD.but(at=NOW + 2 * MINUTE), None),
    ("OIDC_ISSUER_MISMATCH", GOOD.but(extensions=((8, "https://a.example"),)), None),
    ("OIDC_ISSUER_MISMATCH", GOOD.but(extensions=((1, "https://a.example"),)), None),
    ("OIDC_ISSUER_MISMATCH", GOOD.but(extensions=((1, None), (8, None))), None),
    ("WORKFLOW_REPOSITORY_MISMATCH", GOOD.but(extensions=((5, "mallory/name"),)), None),
    ("WORKFLOW_REPOSITORY_MISMATCH", GOOD.but(extensions=((5, None),)), None),
    ("WORKFLOW_REF_PREFIX_MISMATCH", GOOD.but(extensions=((6, "refs/heads/main"),)), None),
    ("WORKFLOW_REF_PREFIX_MISMATCH", GOOD.but(extensions=((6, None),)), None),
    ("PAYLOAD_TYPE_MISMATCH", GOOD.but(payload_type="application/json"), None),
    ("IN_TOTO_STATEMENT_TYPE_NOT_ALLOWED", GOOD.but(statement="https://a.example/v9"), None),
    ("PREDICATE_TYPE_NOT_ALLOWED", GOOD.but(predicate_type="https://a.example/v9"), None),
    ("SUBJECT_MISSING", GOOD.but(subjects=()), None),
    ("SUBJECT_DIGEST_MISMATCH", GOOD.but(subjects=(subject("00" * 32),)), None),
    ("SUBJECT_DIGEST_MISMATCH", GOOD.but(subjects=(subject("00" * 32), subject())), None),
    ("SUBJECT_DIGEST_MISMATCH", GOOD.but(subjects=({"name": "x", "digest": {}},)), None),
    ("PREDICATE_MEASUREMENT_INVALID", GOOD.but(predicate=measurement("aa")), None),
    ("PREDICATE_MEASUREMENT_INVALID", GOOD.but(predicate={"snp_measurement": "aa" * 48}), None),
    ("PREDICATE_MEASUREMENT_INVALID", GOOD.but(predicate="nothing"), None),
]


@pytest.mark.parametrize(("code", "signature", "change"), BUNDLES)
def test_a_flawed_bundle_is_refused_for_its_flaw(
    code: str, signature: Signature, change: Change | None
) -> None:
    assert asked(evidence(signature, change)) == (Exit.REJECTED, code)


@pytest.mark.parametrize(
    ("code", "policy"),
    [
        ("TLOG_COUNT_OUT_OF_RANGE", {"tlog_entries_min": 2}),
        ("TLOG_COUNT_OUT_OF_RANGE", {"tlog_entries_max": 0, "tlog_entries_min": 0}),
        ("SCT_INSUFFICIENT", {"sct_min": 2}),
        ("OBSERVER_TIMESTAMP_INSUFFICIENT", {"observer_timestamps_min": 2}),
        ("OIDC_ISSUER_MISMATCH", {"oidc_issuer": ISSUER + "/"}),
        ("WORKFLOW_REF_PREFIX_MISMATCH", {"workflow_ref_prefix": "refs/heads/"}),
        ("PAYLOAD_TYPE_MISMATCH", {"payload_type": "application/json"}),
        ("IN_TOTO_STATEMENT_TYPE_NOT_ALLOWED", {"in_toto_statement_types_allowed": []}),
        ("PREDICATE_TYPE_NOT_ALLOWED", {"predicate_types_allowed": []}),
    ],
)
def test_a_good_bundle_is_refused_by_a_policy_that_it_does_not_meet(
    code: str, policy: Json
) -> None:
    assert asked(evidence(**policy)) == (Exit.REJECTED, code)


@pytest.mark.parametrize(
    ("signature", "change", "policy"),
    [
        (GOOD.but(scts=("certificates", "more certificates")), None, {}),
        (GOOD.but(scts=()), None, {"sct_min": 0}),
        (GOOD, entries(2), {}),
        (GOOD, entries(0), {"tlog_entries_min": 0}),
        (GOOD, without_promise, {"observer_timestamps_min": 0}),
    ],
)
def test_what_this_verifier_is_too_strict_for_is_unsupported_and_never_accepted(
    signature: Signature, change: Change | None, policy: Json
) -> None:
    assert asked(evidence(signature, change, **policy)) == (Exit.UNSUPPORTED, None)


def test_what_is_claimed_of_bundles_is_what_is_done() -> None:
    claimed = capabilities([])["sigstore"]
    shown = {
        # Zero is never enough, and two are never taken: the policy cannot say otherwise.
        "tlog_entries_min": asked(evidence(GOOD, entries(0), tlog_entries_min=0)),
        "sct_min": asked(evidence(GOOD.but(scts=()), sct_min=0)),
        "observer_timestamps_min": asked(
            evidence(GOOD, without_promise, observer_timestamps_min=0)
        ),
    }
    assert set(shown.values()) == {(Exit.UNSUPPORTED, None)}
    unclaimed = {
        name for name, is_so in claimed["policy_fields_configurable"].items() if not is_so
    }
    assert unclaimed == set(shown)
    assert asked(evidence(GOOD, entries(2)))[0] is Exit.UNSUPPORTED
    assert not claimed["accepts_multi_tlog_entries"]
    assert asked(evidence(GOOD, legacy))[0] is Exit.REJECTED
    assert not claimed["legacy_bundle_format_supported"]
    older = GOOD.but(extensions=((1, "https://a.example"),))
    assert asked(evidence(older))[0] is Exit.REJECTED
    assert not claimed["oidc_issuer_v2_preferred"]
    told_apart = {asked(evidence(GOOD.but(scts=scts)))[1] for scts in ((), ("certificates",) * 2)}
    assert len(told_apart) == 2
    assert claimed["scts_count_distinguish_missing_vs_duplicate"]
    assert claimed["rejects_duplicate_sct_log"]


def test_any_kind_is_taken_where_the_policy_names_none() -> None:
    other = GOOD.but(statement="https://a.example/s", predicate_type="https://a.example/p")
    any_kind = {"predicate_types_allowed": None, "in_toto_statement_types_allowed": None}
    assert asked(evidence(other, **any_kind)) == (Exit.ACCEPTED, None)


def test_a_digest_is_compared_in_either_case_and_the_first_subject_counts() -> None:
    given = evidence(GOOD.but(subjects=(subject(DIGEST.upper()), subject("00" * 32))))
    given["expected_digest_sha256_hex"] = DIGEST.upper()
    assert asked(given) == (Exit.ACCEPTED, None)


@pytest.mark.parametrize("member", ["tlogs", "ctlogs", "certificateAuthorities"])
def test_a_root_is_read_before_what_it_vouches_for(member: str) -> None:
    expected = {
        "tlogs": "REKOR_KEY_NOT_TRUSTED",
        "ctlogs": "SCT_INSUFFICIENT",
        "certificateAuthorities": "FULCIO_CHAIN_INVALID",
    }
    without = evidence() | {"trust_root_b64": packed(trusted_root() | {member: []})}
    assert asked(without) == (Exit.REJECTED, expected[member])
    broken = evidence() | {"trust_root_b64": packed(trusted_root() | {member: "none"})}
    assert asked(broken) == (Exit.REJECTED, "TRUST_ROOT_INVALID")


@pytest.mark.parametrize(
    ("code", "place"),
    [
        ("REKOR_KEY_NOT_TRUSTED", lambda root: root["tlogs"][0]["publicKey"]),
        ("SCT_INSUFFICIENT", lambda root: root["ctlogs"][0]["publicKey"]),
        ("FULCIO_CHAIN_INVALID", lambda root: root["certificateAuthorities"][0]),
    ],
)
def test_a_key_that_was_retired_before_is_trusted_no_more(
    code: str, place: Callable[[Json], Json]
) -> None:
    root = trusted_root()
    end = NOW - 2 * MINUTE
    place(root)["validFor"] = {"start": (NOW - YEAR).isoformat(), "end": end.isoformat()}
    given = evidence() | {"trust_root_b64": packed(root)}
    assert asked(given) == (Exit.REJECTED, code)


@pytest.mark.parametrize(
    "change",
    [
        {"bundle_b64": "!"},
        {"trust_root_b64": "!"},
        {"expected_digest_sha256_hex": "ab"},
        {"repo": "name"},
        {"policy": {}},
        {"policy": POLICY | {"sct_min": -1}},
        {"policy": POLICY | {"more": 1}},
        {"verification_time_unix": None},
        {"more": 1},
    ],
)
def test_an_input_that_is_none_is_malformed(change: Json) -> None:
    assert asked(evidence() | change) == (Exit.MALFORMED, None)


def flow(signature: Signature = GOOD, **parts: Any) -> Json:
    return {"mode": "standard", "sigstore": evidence(signature), **parts}


def told(given: Json) -> Json:
    """The refusal."""
    found = answer("verify-full", json.dumps({"schema_version": "1"} | given).encode())
    assert found.exit is Exit.REJECTED, found
    assert found.output is not None
    rejection: Json = found.output["rejection"]
    return rejection


SEV: Json = {
    "attestation_sev": {}
    if not ROOT.is_dir()
    else case_input("verify-full", "500-standard-flow-sev-happy")["attestation_sev"]
}


@needs_vectors
def test_evidence_of_other_software_than_was_signed_is_refused() -> None:
    rejection = told(flow(**SEV))
    assert (rejection["code"], rejection["stage"]) == (
        "MEASUREMENT_MISMATCH",
        "verify-measurement",
    )


@needs_vectors
@pytest.mark.parametrize(
    ("signature", "code"),
    [
        (GOOD.but(signed_by="another"), "DSSE_SIGNATURE_INVALID"),
        (GOOD.but(predicate=measurement("aa")), "PREDICATE_MEASUREMENT_INVALID"),
        (GOOD.but(predicate_type=STATEMENT), "PREDICATE_MEASUREMENT_INVALID"),
    ],
)
def test_a_flow_ends_at_a_bundle_that_is_refused(signature: Signature, code: str) -> None:
    given = flow(signature, **SEV)
    given["sigstore"]["policy"]["predicate_types_allowed"] = None
    rejection = told(given)
    assert (rejection["code"], rejection["stage"]) == (code, sigstore.STAGE)


@needs_vectors
@pytest.mark.parametrize("mode", ["standard", "bundle"])
def test_a_quote_must_be_of_what_was_signed_and_of_a_platform_that_is_listed(mode: str) -> None:
    quote = case_input("attestation-tdx", "300-tdx-v4-happy")
    shown = answer("verify-attestation-tdx", json.dumps(quote).encode()).output
    assert shown is not None
    mrtd, rtmr0, rtmr1, rtmr2, _ = shown["outputs"]["measurement"]["registers"]
    del quote["schema_version"]
    listed = {"id": "platform", "mrtd": mrtd, "rtmr0": rtmr0}
    signature = GOOD.but(predicate=measurement(rtmr1=rtmr1, rtmr2=rtmr2))
    given = flow(signature, attestation_tdx=quote, hardware_measurements=[listed])
    given["mode"] = mode
    assert asked(given, "verify-full") == (Exit.ACCEPTED, None)
    for unlisted in ([], [listed | {"mrtd": "00" * 48}]):
        rejection = told(given | {"hardware_measurements": unlisted})
        assert (rejection["code"], rejection["stage"]) == (
            "HARDWARE_NO_MATCH",
            full.HARDWARE_STAGE,
        )
    other = GOOD.but(predicate=measurement(rtmr1=rtmr2, rtmr2=rtmr2))
    rejection = told(given | {"sigstore": evidence(other)})
    assert rejection["code"] == "MEASUREMENT_MISMATCH"


@needs_vectors
def test_a_flow_that_begins_at_a_bundle_needs_one() -> None:
    assert asked({"mode": "standard", **SEV}, "verify-full") == (Exit.MALFORMED, None)


@needs_vectors
def test_the_genuine_bundle_is_refused_as_soon_as_its_certificate_is_old() -> None:
    given = case_input("verify-full", "500-standard-flow-sev-happy")["sigstore"]
    assert asked(given) == (Exit.ACCEPTED, None)
    later = int((NOW + dt.timedelta(days=1)).timestamp())
    assert asked(given | {"verification_time_unix": later}) == (Exit.REJECTED, "CERT_EXPIRED")
