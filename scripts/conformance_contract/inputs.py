"""The inputs of the stages, strictly: a member that a schema does not know is malformed."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Literal, TypeVar

import msgspec

from agent.attestation.evidence import EvidenceError
from agent.attestation.strict_json import read_json
from scripts.conformance_contract.outcome import Malformed

MAX_INPUT_BYTES = 8 << 20
Spl = Annotated[int, msgspec.Meta(ge=0, le=255)]
Count = Annotated[int, msgspec.Meta(ge=0)]
T = TypeVar("T")


class Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all of them."""


class Versioned(Part, frozen=True, kw_only=True):
    schema_version: Literal["1"]


class SevPolicy(Part, frozen=True, kw_only=True):
    expected_measurement_hex: str | None = None
    expected_host_data_hex: str | None = None
    expected_report_data_hex: str | None = None
    expected_id_key_digest_hex: str | None = None
    expected_author_key_digest_hex: str | None = None
    min_tcb_bl_spl: Spl = 0
    min_tcb_tee_spl: Spl = 0
    min_tcb_snp_spl: Spl = 0
    min_tcb_ucode_spl: Spl = 0
    enforce_spec_defaults: bool = False


class SevEvidence(Part, frozen=True, kw_only=True):
    """Without a moment it is judged now."""

    attestation_doc_b64: str
    vcek_der_b64: str
    amd_root_ca_pem: str | None = None
    ask_pem: str | None = None
    expiration_check_date_unix: int | None = None
    policy: SevPolicy = SevPolicy()


class SevInput(SevEvidence, frozen=True, kw_only=True):
    schema_version: Literal["1"]


class TdxPins(Part, frozen=True, kw_only=True):
    accepted_qv_results: tuple[str, ...] = ("OK",)
    expected_fmspc_hex: str | None = None
    tcb_evaluation_required: bool = True
    expected_td_attributes_hex: str | None = None
    expected_xfam_hex: str | None = None
    expected_mr_signer_seam_hex: str | None = None
    expected_seam_attributes_hex: str | None = None
    expected_mrseam_allowlist: tuple[str, ...] | None = None
    expected_mrtd_hex: str | None = None
    expected_mr_config_id_hex: str | None = None
    expected_mr_owner_hex: str | None = None
    expected_mr_owner_config_hex: str | None = None
    expected_rtmr3_hex: str | None = None
    expected_report_data_hex: str | None = None
    min_tee_tcb_svn_hex: str | None = None
    min_tcb_evaluation_data_number: int = 0
    expected_qe_vendor_id_hex: str | None = None
    enforce_spec_defaults: bool = False


class TdxCollateralInput(Part, frozen=True, kw_only=True):
    tcb_info_json: str
    qe_identity_json: str
    pck_crl_der_b64: str
    root_crl_der_b64: str
    intel_root_ca_pem: str | None = None
    tcb_info_issuer_chain_pem: str | None = None
    qe_identity_issuer_chain_pem: str | None = None
    pck_crl_issuer_chain_pem: str | None = None


class TdxEvidence(Part, frozen=True, kw_only=True):
    """Without a moment it is judged now."""

    quote_b64: str
    collateral: TdxCollateralInput | None = None
    expiration_check_date_unix: int | None = None
    policy: TdxPins = TdxPins()


class TdxInput(TdxEvidence, frozen=True, kw_only=True):
    schema_version: Literal["1"]
    collateral: TdxCollateralInput
    expiration_check_date_unix: int
    execution_mode: Literal["adapter", "public_api"] = "adapter"


class Registers(Part, frozen=True, kw_only=True):
    type: str
    registers: tuple[str, ...]


class MeasurementInput(Versioned, frozen=True, kw_only=True):
    source: Registers
    target: Registers | None = None


class Hardware(Part, frozen=True, kw_only=True):
    id: str
    mrtd: str
    rtmr0: str


class HardwareInput(Versioned, frozen=True, kw_only=True):
    enclave_measurement: Registers
    hardware_measurements: tuple[Hardware, ...]


class KeyBindingInput(Versioned, frozen=True, kw_only=True):
    report_data_hex: str
    offered_hpke_public_key_hex: str


class SigstoreDefaults(Part, frozen=True, kw_only=True):
    """Where a flow names nothing, what is typical is asked for; None in a list's place: any."""

    oidc_issuer: str = "https://token.actions.githubusercontent.com"
    workflow_ref_prefix: str = "refs/tags/"
    payload_type: str = "application/vnd.in-toto+json"
    predicate_types_allowed: tuple[str, ...] | None = None
    in_toto_statement_types_allowed: tuple[str, ...] | None = None
    tlog_entries_min: Count = 1
    tlog_entries_max: Count | None = None
    sct_min: Count = 1
    observer_timestamps_min: Count = 1


class SigstorePolicy(SigstoreDefaults, frozen=True, kw_only=True):
    oidc_issuer: str
    workflow_ref_prefix: str
    payload_type: str


class SigstoreEvidence(Part, frozen=True, kw_only=True):
    """Without a moment it is judged by the moments that the bundle proves, alone."""

    bundle_b64: str
    expected_digest_sha256_hex: str
    repo: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]+/[A-Za-z0-9._-]+$")]
    policy: SigstoreDefaults
    trust_root_b64: str
    verification_time_unix: int | None = None


class SigstoreInput(SigstoreEvidence, frozen=True, kw_only=True):
    schema_version: Literal["1"]
    policy: SigstorePolicy
    verification_time_unix: Count


class FullInput(Versioned, frozen=True, kw_only=True):
    mode: Literal["standard", "bundle", "pinned"]
    sigstore: SigstoreEvidence | None = None
    attestation_sev: SevEvidence | None = None
    attestation_tdx: TdxEvidence | None = None
    hardware_measurements: tuple[Hardware, ...] = ()
    pinned_measurement: Registers | None = None


def read_input(raw: bytes, kind: type[T]) -> T:
    """Raises Malformed."""
    if len(raw) > MAX_INPUT_BYTES:
        raise Malformed(f"the input is longer than {MAX_INPUT_BYTES} bytes")
    try:
        return read_json(raw, kind, "the input")
    except EvidenceError as error:
        raise Malformed(str(error)) from error


def from_base64(text: str, name: str) -> bytes:
    """Raises Malformed."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Malformed(f"{name}: it is not base64") from error


def from_hex(text: str, name: str, size: int | None = None) -> bytes:
    """Hex of either case, of `size` bytes if given. Raises Malformed."""
    try:
        value = bytes.fromhex(text) if text.isascii() and (text.isalnum() or not text) else None
    except ValueError:
        value = None
    if value is None or (size is not None and len(value) != size):
        wanted = "" if size is None else f" of {size} bytes"
        raise Malformed(f"{name}: it is not hex{wanted}")
    return value
