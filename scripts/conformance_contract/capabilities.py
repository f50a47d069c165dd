"""What this verifier says of itself under the contract."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from agent.attestation.measurement import MeasurementKind


def capabilities(stages: list[str]) -> dict[str, Any]:
    """As the schema `capabilities` has it. Whatever is not claimed is skipped by the harness."""
    return {
        "schema_version": "1",
        "sdk": "enclave-agent",
        "sdk_version": version("enclave-agent"),
        "stages_supported": stages,
        "platforms_supported": ["sev-snp", "tdx"],
        "flow_modes_supported": ["standard", "bundle", "pinned"],
        "sigstore": {
            "trust_root_loading": "configurable",
            "verification_time_override": "supported",
            "policy_fields_configurable": {
                "oidc_issuer": True,
                "workflow_ref_prefix": True,
                "workflow_repository": True,
                "predicate_types_allowed": True,
                "in_toto_statement_types_allowed": True,
                "payload_type": True,
                "tlog_entries_min": False,  # one and no other number is taken, and never none
                "tlog_entries_max": True,
                "sct_min": False,
                "observer_timestamps_min": False,
            },
            "predicate_types_understood": [str(MeasurementKind.RELEASE)],
            "legacy_bundle_format_supported": False,
            "accepts_multi_tlog_entries": False,
            "oidc_issuer_v2_preferred": False,  # where both are there, both must be the issuer
            "scts_count_distinguish_missing_vs_duplicate": True,
            "rejects_duplicate_sct_log": True,
            "checks_only_subject_0": True,
            "in_toto_statement_tolerates_extra_fields": True,
        },
        "measurement": {"compare_multiplatform_to_tdx_supported": True},
        "attestation_sev": {
            "supported": True,
            "injected_collateral_supported": True,
            "extended_checks_supported": True,
            "amd_root_ca_injection_supported": True,
            "verification_time_override": "supported",
            "public_api_hooks_supported": True,
        },
        "attestation_tdx": {
            "supported": True,
            "injected_collateral_supported": True,
            "verification_time_override": "supported",
            "tcb_evaluation_supported": True,
            "public_api_hooks_supported": True,
            "extended_td_checks_supported": True,
            "accepts_non_terminal_tcb_statuses": False,
            "enforces_tcb_evaluation_data_number_minimum": True,
            "policy_fields_supported": {
                "expected_fmspc_hex": True,
                "accepted_qv_results": True,
            },
        },
        "ehbp": {"key_binding_supported": True},
    }
