"""Every public vector gets the public verdict, for the public reason, in the public form."""

from __future__ import annotations

import base64
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml

from agent.attestation.document_v2 import unpack
from scripts.conformance_contract import measurements, sev, sigstore, tdx
from scripts.conformance_contract.outcome import Exit
from scripts.conformance_contract.stages import STAGES, answer
from tests.fakes.intel import NOW as INTEL_NOW
from tests.fakes.tdx_guest import answers_of, intel
from tests.tdx_gpu_vectors import CONFORMANCE, needs_vectors

REPOSITORY = Path(__file__).parents[2]
# What the expected outputs of these cases decoded wrongly: all beyond offset 0x1E0.
SHIFTED = {
    "current_build", "current_minor", "current_major", "committed_tcb_hex", "committed_build",
    "committed_minor", "committed_major", "launch_tcb_hex",
}  # fmt: skip
# Its policy says null where its own schema wants a list.
NOT_BY_ITS_SCHEMA = {"500-standard-flow-sev-happy"}


def folders() -> list[Path]:
    return sorted(path.parent for path in CONFORMANCE.glob("*/*/manifest.yaml"))


def manifest(case: Path) -> dict[str, Any]:
    return yaml.safe_load((case / "manifest.yaml").read_text())


def schema(name: str) -> dict[str, Any]:
    return json.loads((CONFORMANCE / "schemas" / f"{name}.schema.json").read_text())


def given(name: str) -> dict[str, Any]:
    (case,) = [folder for folder in folders() if folder.name == name]
    return json.loads((case / "input.json").read_text())


def asked(stage: str, value: dict[str, Any]) -> tuple[Exit, str | None]:
    found = answer(stage, json.dumps(value).encode())
    rejection = found.output.get("rejection") if found.output else None
    return found.exit, rejection["code"] if rejection else None


def flat(value: object, path: str = "") -> dict[str, object]:
    if not isinstance(value, dict):
        return {path: value}
    found: dict[str, object] = {}
    for key, inner in value.items():
        found |= flat(inner, f"{path}.{key}" if path else key)
    return found


@needs_vectors
@pytest.mark.parametrize("case", folders(), ids=lambda case: case.name)
def test_a_vector_gets_its_verdict_for_its_reason(case: Path) -> None:
    told = manifest(case)
    stage, expects = told["stage"], told["expects"]
    raw = (case / "input.json").read_bytes()
    found = answer(stage, raw)
    assert found.exit == expects["exit_code"], found
    if case.name not in NOT_BY_ITS_SCHEMA:
        jsonschema_rs.validate(schema(f"{stage}.input"), json.loads(raw))
    if found.output is None:
        assert found.exit is Exit.MALFORMED
        return
    jsonschema_rs.validate(schema(f"{stage}.output"), found.output)
    if found.exit is Exit.REJECTED:
        codes = expects["rejection_code"]
        assert found.output["rejection"]["code"] in (codes if isinstance(codes, list) else [codes])
        assert found.note
        return
    expected = json.loads((case / "expected.json").read_text())
    ours = flat(found.output.get("outputs", {}))
    for path, value in flat(expected.get("outputs", {})).items():
        if path.rpartition(".")[2] not in SHIFTED:
            assert ours[path] == value, path


@needs_vectors
def test_all_vectors_are_there() -> None:
    assert len(folders()) >= 87
    told = {manifest(case)["stage"] for case in folders()}
    assert told == set(STAGES) - {sigstore.STAGE}  # bundles come in the flows; see the stage's own


@needs_vectors
def test_the_codes_are_words_of_the_contract() -> None:
    for module in (sev, tdx, sigstore):
        stage = module.STAGE
        known = schema(f"{stage}.output")["properties"]["rejection"]["properties"]["code"]["enum"]
        assert {*module.CODES.values(), module.OTHER} <= set(known)
    outputs = schema("verify-measurement.output")["properties"]
    known = outputs["rejection"]["properties"]["code"]["enum"]
    assert set(measurements.CODES.values()) <= set(known)
    results = schema(f"{tdx.STAGE}.output")["properties"]["outputs"]["properties"]["qv_result"]
    assert set(tdx.QV_RESULTS.values()) == set(results["enum"])


@needs_vectors
def test_what_is_claimed_of_us_is_in_the_contract_s_form() -> None:
    found = answer("capabilities", b"")
    assert found.exit is Exit.ACCEPTED
    jsonschema_rs.validate(schema("capabilities"), found.output)
    assert found.output["stages_supported"] == list(STAGES)


@needs_vectors
def test_what_the_vectors_decoded_wrongly_is_right_here() -> None:
    case = given("200-real-sev-snp-happy")
    report = unpack(base64.b64decode(case["attestation_doc_b64"]))
    found = answer(sev.STAGE, json.dumps(case).encode())
    fields = found.output["outputs"]["body_fields"]
    assert fields["committed_tcb_hex"] == report[0x1E0:0x1E8].hex()
    assert fields["launch_tcb_hex"] == report[0x1F0:0x1F8].hex()
    build, minor, major = report[0x1E8:0x1EB]
    assert [fields[f"current_{part}"] for part in ("build", "minor", "major")] == [
        build,
        minor,
        major,
    ]


@needs_vectors
@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("340-tcb-info-sig-broken", "tdx_tcb_info_signature"),
        ("344-tcb-info-fmspc-tampered", "tdx_tcb_info_signature"),
        ("342-qe-identity-sig-broken", "tdx_qe_identity_signature"),
        ("345-qe-identity-mrsigner-tampered", "tdx_qe_identity_signature"),
    ],
)
def test_a_changed_document_is_refused_for_that_and_not_for_its_spaces(name: str, code: str):
    case = given(name)
    # The cases were written with spaces, which alone breaks a signature: spell them as Intel does.
    for member in ("tcb_info_json", "qe_identity_json"):
        text = json.dumps(json.loads(case["collateral"][member]), separators=(",", ":"))
        case["collateral"][member] = text
    assert answer(tdx.STAGE, json.dumps(case).encode()).note.startswith(f"{code}: ")


@pytest.mark.parametrize(
    ("attributes", "code"),
    [
        ("0100001000000000", "TD_ATTRIBUTES_DEBUG_SET"),
        ("0000001001000000", "TD_ATTRIBUTES_RESERVED_BIT_SET"),
    ],
)
def test_what_a_quote_says_is_named_before_its_collateral(attributes: str, code: str) -> None:
    vendor = intel()
    collateral = vendor.collateral(tcb_info={"nextUpdate": "2026-02-21T00:00:00Z"})
    bodies = [base64.b64decode(one["body_base64"]) for one in answers_of(collateral)]
    case = {
        "schema_version": "1",
        "quote_b64": base64.b64encode(
            vendor.quote(report={"td_attributes": bytes.fromhex(attributes)})
        ).decode(),
        "collateral": {
            "tcb_info_json": bodies[0].decode(),
            "qe_identity_json": bodies[1].decode(),
            "pck_crl_der_b64": base64.b64encode(bodies[2]).decode(),
            "root_crl_der_b64": base64.b64encode(bodies[3]).decode(),
            "intel_root_ca_pem": vendor.anchor.pem,
            "tcb_info_issuer_chain_pem": collateral.tcb_info_issuer_chain,
            "qe_identity_issuer_chain_pem": collateral.qe_identity_issuer_chain,
        },
        "expiration_check_date_unix": int(INTEL_NOW.timestamp()),
    }
    assert asked(tdx.STAGE, case) == (Exit.REJECTED, code)
    case["quote_b64"] = base64.b64encode(vendor.quote()).decode()
    assert asked(tdx.STAGE, case) == (Exit.REJECTED, "TCB_INFO_EXPIRED")


@needs_vectors
def test_the_unchanged_documents_are_signed_by_the_key_of_the_known_chain():
    case = given("300-tdx-v4-happy")
    case["policy"] = {}
    note = answer(tdx.STAGE, json.dumps(case).encode()).note
    # Signatures hold; only the certificate that is known is younger than the case's date.
    assert note.startswith("tdx_tcb_info_chain_expired: ")


@needs_vectors
def test_a_pinned_measurement_of_other_software_is_refused_as_of_its_stage() -> None:
    case = given("510-pinned-flow-sev-happy")
    case["pinned_measurement"]["registers"] = ["ab" * 48]
    found = answer("verify-full", json.dumps(case).encode())
    jsonschema_rs.validate(schema("verify-full.output"), found.output)
    rejection = found.output["rejection"]
    assert (rejection["code"], rejection["stage"]) == (
        "MEASUREMENT_MISMATCH",
        "verify-measurement",
    )


@needs_vectors
def test_evidence_that_is_refused_in_a_flow_is_told_as_of_its_stage() -> None:
    case = given("510-pinned-flow-sev-happy")
    case["attestation_sev"]["expiration_check_date_unix"] = 2_019_686_400
    rejection = answer("verify-full", json.dumps(case).encode()).output["rejection"]
    assert (rejection["code"], rejection["stage"]) == ("VCEK_EXPIRED", sev.STAGE)


@needs_vectors
def test_a_quote_is_held_against_a_release_in_a_flow() -> None:
    quote = given("300-tdx-v4-happy")
    shown = answer(tdx.STAGE, json.dumps(quote).encode()).output["outputs"]["measurement"]
    rtmr1, rtmr2 = shown["registers"][2:4]
    del quote["schema_version"]
    flow = {
        "schema_version": "1",
        "mode": "pinned",
        "attestation_tdx": quote,
        "pinned_measurement": {
            "type": "https://tinfoil.sh/predicate/snp-tdx-multiplatform/v1",
            "registers": ["00" * 48, rtmr1, rtmr2],
        },
    }
    assert asked("verify-full", flow) == (Exit.ACCEPTED, None)
    flow["pinned_measurement"]["registers"][1] = rtmr2
    assert asked("verify-full", flow) == (Exit.REJECTED, "MEASUREMENT_MISMATCH")
    quote["policy"]["tcb_evaluation_required"] = True
    del quote["collateral"]
    assert asked("verify-full", flow) == (Exit.MALFORMED, None)


@needs_vectors
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("200-real-sev-snp-happy", {"attestation_doc_b64": "!"}),
        ("200-real-sev-snp-happy", {"attestation_doc_b64": "QUFB"}),
        ("200-real-sev-snp-happy", {"more": 1}),
        ("200-real-sev-snp-happy", {"schema_version": "2"}),
        ("200-real-sev-snp-happy", {"amd_root_ca_pem": "x"}),
        ("200-real-sev-snp-happy", {"expiration_check_date_unix": 10**18}),
        ("200-real-sev-snp-happy", {"policy": {"expected_measurement_hex": "ab"}}),
        ("200-real-sev-snp-happy", {"policy": {"expected_host_data_hex": "zz" * 32}}),
        ("300-tdx-v4-happy", {"quote_b64": "!"}),
        ("300-tdx-v4-happy", {"policy": {"expected_xfam_hex": "ab"}}),
        ("300-tdx-v4-happy", {"collateral": {}}),
        ("100-fingerprint-sev-single-register", {"source": {"type": "x"}}),
        ("200-hardware-match-single", {"hardware_measurements": [{"id": "x"}]}),
        ("600-key-binding-happy", {"report_data_hex": "a"}),
        ("510-pinned-flow-sev-happy", {"mode": "other"}),
        ("510-pinned-flow-sev-happy", {"pinned_measurement": None}),
        ("510-pinned-flow-sev-happy", {"attestation_sev": None}),
    ],
)
def test_an_input_that_is_none_is_malformed(name: str, change: dict[str, Any]) -> None:
    case = given(name)
    (stage,) = [manifest(folder)["stage"] for folder in folders() if folder.name == name]
    if name == "300-tdx-v4-happy" and "policy" in change:
        change["policy"]["tcb_evaluation_required"] = False
    assert asked(stage, case | change) == (Exit.MALFORMED, None)


@pytest.mark.parametrize("stage", list(STAGES))
@pytest.mark.parametrize("raw", [b"", b"{}", b"[]", b"\xff", b"{" * 9999, b'{"a":1,"a":1}'])
def test_no_bytes_are_more_than_malformed(stage: str, raw: bytes) -> None:
    found = answer(stage, raw)
    assert (found.exit, found.output) == (Exit.MALFORMED, None)
    assert found.note


@pytest.mark.parametrize("stage", ["verify-attestation", "nothing"])
def test_a_stage_that_is_not_here_is_unsupported_and_says_so(stage: str) -> None:
    found = answer(stage, b"{}")
    assert (found.exit, found.output) == (Exit.UNSUPPORTED, None)
    assert found.note


@needs_vectors
def test_an_ark_of_the_case_is_believed_in_the_place_of_the_vendor_s() -> None:
    """And only that one: the report is another's, which its own VCEK's chain shows."""
    case = given("200-real-sev-snp-happy")
    chain = CONFORMANCE / "attestation-sev" / "_assets" / "synth_chain"
    case["amd_root_ca_pem"] = (chain / "ark.pem").read_text()
    case["ask_pem"] = (chain / "ask.pem").read_text()
    assert asked(sev.STAGE, case) == (Exit.REJECTED, "VCEK_CHAIN_INVALID")


@needs_vectors
def test_a_report_with_more_behind_it_is_no_report() -> None:
    case = given("200-real-sev-snp-happy")
    longer = unpack(base64.b64decode(case["attestation_doc_b64"])) + b"\0"
    case["attestation_doc_b64"] = base64.b64encode(gzip.compress(longer)).decode()
    assert asked(sev.STAGE, case) == (Exit.REJECTED, "REPORT_FORMAT_UNSUPPORTED")


def run(stage: str, raw: bytes, **environ: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "scripts.conformance_contract", stage],
        input=raw,
        capture_output=True,
        cwd=REPOSITORY,
        env=os.environ | environ,
        timeout=60,
        check=False,
    )


@needs_vectors
def test_the_program_speaks_as_the_function_does() -> None:
    raw = json.dumps(given("400-measurement-pin-mismatch")).encode()
    done = run(sev.STAGE, raw)
    assert done.returncode == 10
    assert json.loads(done.stdout)["rejection"] == {"code": "MEASUREMENT_MISMATCH"}
    assert done.stderr.startswith(b"snp_measurement: ")


@needs_vectors
def test_without_the_vendors_certificates_a_case_is_unsupported(tmp_path: Path) -> None:
    raw = json.dumps(given("200-real-sev-snp-happy")).encode()
    done = run(sev.STAGE, raw, CONFORMANCE_VECTORS=str(tmp_path))
    assert (done.returncode, done.stdout) == (20, b"")
    assert b"cannot be read" in done.stderr
