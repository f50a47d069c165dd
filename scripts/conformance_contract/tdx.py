"""Stage verify-attestation-tdx."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from cryptography import x509

from agent.attestation.evidence import EvidenceError
from agent.attestation.measurement import MeasurementKind
from agent.attestation.pinned_chain import spki_sha256
from agent.attestation.port import Check
from agent.attestation.roots import INTEL_ROOT
from agent.attestation.tdx.claims import TdxClaims
from agent.attestation.tdx.collateral import TdxCollateral, collateral_from_answers
from agent.attestation.tdx.platforms import EndorsedPlatform
from agent.attestation.tdx.policy import (
    DEBUG,
    PERFMON,
    PKS,
    SEPT_VE_DISABLE,
    TdxPolicy,
    quote_checks,
    tcb_checks,
)
from agent.attestation.tdx.quote import exact_size
from agent.attestation.tdx.verify import judge_collateral, verify_signatures_of
from agent.model.tcb_status import TcbStatus
from scripts.conformance_contract.inputs import (
    TdxCollateralInput,
    TdxEvidence,
    TdxPins,
    from_base64,
    from_hex,
)
from scripts.conformance_contract.material import intel_collateral
from scripts.conformance_contract.outcome import Accepted, Malformed, Rejected, rejection
from scripts.conformance_contract.sev import moment

STAGE = "verify-attestation-tdx"
OTHER = "QV_RESULT_TERMINAL_UNSPECIFIED"
CODES = {
    "tdx_quote_version": "QUOTE_FORMAT_UNSUPPORTED",
    "tdx_quote_size": "QUOTE_FORMAT_UNSUPPORTED",
    "tdx_body_type": "QUOTE_FORMAT_UNSUPPORTED",
    "tdx_certification_type": "QUOTE_FORMAT_UNSUPPORTED",
    "tdx_quote_truncated": "QUOTE_TRUNCATED",
    "tdx_tee_type": "WRONG_TEE_TYPE",
    "tdx_key_type": "ATTESTATION_KEY_TYPE_UNSUPPORTED",
    "tdx_qe_vendor": "QE_VENDOR_UNKNOWN",
    "tdx_pck_chain_malformed": "PCK_CHAIN_INVALID",
    "tdx_pck_chain_incomplete": "PCK_CHAIN_INCOMPLETE",
    "tdx_pck_chain_invalid": "PCK_CHAIN_INVALID",
    "tdx_pck_chain_root": "ROOT_CA_UNTRUSTED",
    "tdx_pck_chain_expired": "PCK_EXPIRED",
    "tdx_pck_extension": "PCK_CHAIN_INVALID",
    "tdx_pck_sgx_type": "PCK_CHAIN_INVALID",
    "tdx_pck_crl_malformed": "PCK_CHAIN_INVALID",
    "tdx_pck_crl_issuer": "PCK_CHAIN_INVALID",
    "tdx_pck_crl_signature": "PCK_CHAIN_INVALID",
    "tdx_pck_crl_expired": "PCK_CRL_EXPIRED",
    "tdx_root_crl_malformed": "ROOT_CA_UNTRUSTED",
    "tdx_root_crl_issuer": "ROOT_CA_UNTRUSTED",
    "tdx_root_crl_signature": "ROOT_CA_UNTRUSTED",
    "tdx_root_crl_expired": "ROOT_CRL_EXPIRED",
    "tdx_revoked": "PCK_REVOKED",
    "tdx_quote_signature": "QUOTE_SIGNATURE_INVALID",
    "tdx_qe_report_signature": "QE_REPORT_SIGNATURE_INVALID",
    "tdx_attestation_key": "AK_BINDING_INVALID",
    "tdx_fmspc_mismatch": "PCK_FMSPC_MISMATCH",
    "tdx_tcb_info_signature": "TCB_INFO_SIGNATURE_INVALID",
    "tdx_tcb_info_expired": "TCB_INFO_EXPIRED",
    "tdx_tcb_info_chain_malformed": "TCB_INFO_CHAIN_INVALID",
    "tdx_tcb_info_chain_incomplete": "TCB_INFO_CHAIN_INVALID",
    "tdx_tcb_info_chain_invalid": "TCB_INFO_CHAIN_INVALID",
    "tdx_tcb_info_chain_root": "TCB_INFO_CHAIN_INVALID",
    "tdx_tcb_info_chain_expired": "TCB_INFO_CHAIN_INVALID",
    "tdx_qe_identity_signature": "QE_IDENTITY_SIGNATURE_INVALID",
    "tdx_qe_identity_expired": "QE_IDENTITY_EXPIRED",
    "tdx_qe_identity_kind": "QE_IDENTITY_ID_INVALID",
    "tdx_qe_identity_mismatch": "QE_IDENTITY_FIELD_MISMATCH",
    "tdx_tcb_status": "QV_RESULT_NOT_ACCEPTED_BY_POLICY",
    "tdx_tcb_evaluation": "TCB_EVAL_DATA_NUMBER_TOO_LOW",
    "tdx_fmspc": "PCK_FMSPC_MISMATCH",
    "tdx_debug": "TD_ATTRIBUTES_DEBUG_SET",
    "tdx_attributes_reserved": "TD_ATTRIBUTES_RESERVED_BIT_SET",
    "tdx_attributes": "TD_ATTRIBUTES_MISMATCH",
    "tdx_xfam_required": "XFAM_REQUIRED_BIT_CLEAR",
    "tdx_xfam_forbidden": "XFAM_FORBIDDEN_BIT_SET",
    "tdx_xfam": "XFAM_MISMATCH",
    "tdx_mrsignerseam": "MR_SIGNER_SEAM_MISMATCH",
    "tdx_seam_attributes": "SEAM_ATTRIBUTES_MISMATCH",
    "tdx_mrseam": "MR_SEAM_NOT_ALLOWED",
    "tdx_platform": "MRTD_MISMATCH",
    "tdx_rtmr3": "RTMR3_NONZERO",
    "tdx_report_data": "REPORT_DATA_MISMATCH",
    "tdx_mrconfigid": "MR_CONFIG_ID_MISMATCH",
    "tdx_mrowner": "MR_OWNER_MISMATCH",
    "tdx_mrownerconfig": "MR_OWNER_CONFIG_MISMATCH",
    "tdx_tee_tcb_svn": "TEE_TCB_SVN_BELOW_MINIMUM",
    "tdx_qe_vendor_id": "QE_VENDOR_ID_MISMATCH",
}
# The pin of a case → our policy's field, and its bytes.
PINS = {
    "expected_td_attributes_hex": ("td_attributes", 8),
    "expected_xfam_hex": ("xfam", 8),
    "expected_mr_signer_seam_hex": ("mrsignerseam", 48),
    "expected_seam_attributes_hex": ("seam_attributes", 8),
    "expected_mr_config_id_hex": ("mrconfigid", 48),
    "expected_mr_owner_hex": ("mrowner", 48),
    "expected_mr_owner_config_hex": ("mrownerconfig", 48),
    "expected_rtmr3_hex": ("rtmr3", 48),
    "expected_report_data_hex": ("report_data", 64),
    "min_tee_tcb_svn_hex": ("minimum_tee_tcb_svn", 16),
    "expected_qe_vendor_id_hex": ("qe_vendor_id", 16),
}
QV_RESULTS = {
    TcbStatus.UP_TO_DATE: "OK",
    TcbStatus.SW_HARDENING_NEEDED: "SW_HARDENING_NEEDED",
    TcbStatus.CONFIGURATION_NEEDED: "CONFIG_NEEDED",
    TcbStatus.CONFIGURATION_AND_SW_HARDENING_NEEDED: "CONFIG_AND_SW_HARDENING_NEEDED",
    TcbStatus.OUT_OF_DATE: "OUT_OF_DATE",
    TcbStatus.OUT_OF_DATE_CONFIGURATION_NEEDED: "OUT_OF_DATE_CONFIG_NEEDED",
    TcbStatus.TD_RELAUNCH_ADVISED: "TD_RELAUNCH_ADVISED",
    TcbStatus.TD_RELAUNCH_ADVISED_CONFIGURATION_NEEDED: "TD_RELAUNCH_ADVISED_CONFIG_NEEDED",
}
_REGISTERS = ("rtmr0", "rtmr1", "rtmr2", "rtmr3")


def verify(given: TdxEvidence) -> Accepted:
    """Raises Rejected, Malformed, Unsupported."""
    return Accepted(_outputs(believe(given)))


def believe(given: TdxEvidence) -> TdxClaims:
    """The claims, once every pin of the case holds; what is not pinned is what the quote says, or
    zero where the contract has that default.
    """
    now, required = moment(given.expiration_check_date_unix), given.policy.tcb_evaluation_required
    quote = from_base64(given.quote_b64, "quote_b64")
    if required and given.collateral is None:
        raise Malformed("collateral: it is needed to evaluate the TCB")
    try:
        signed = verify_signatures_of(
            quote[: exact_size(quote)], now, root_spki_sha256=_root(given.collateral)
        )
        policy = policy_of(signed.claims, given.policy)
        _require(quote_checks(signed.claims, policy))
        if not required or given.collateral is None:
            return signed.claims
        claims = judge_collateral(signed, _collateral(given.collateral), now)
    except EvidenceError as error:
        raise rejection(CODES, error.code, str(error), other=OTHER) from error
    if claims.tcb is not None and claims.tcb.status is TcbStatus.REVOKED:
        raise Rejected("TCB_REVOKED", "the platform's TCB is revoked")
    _require(tcb_checks(claims, policy))
    return claims


def _require(checks: Iterable[Check]) -> None:
    for check in checks:
        if not check.passed:
            raise rejection(CODES, check.code, check.detail, other=OTHER)


def shown(claims: TdxClaims) -> dict[str, Any]:
    """The measurement, as the contract names it."""
    registers = list(claims.report.registers.hex())
    return {"type": str(MeasurementKind.TDX), "registers": registers}


def policy_of(claims: TdxClaims, pins: TdxPins) -> TdxPolicy:
    """What the case pins; what it does not is what the quote says."""
    report = claims.report
    mrtd = pins.expected_mrtd_hex
    seams, fmspc = pins.expected_mrseam_allowlist, pins.expected_fmspc_hex
    policy = TdxPolicy(
        report_data=report.report_data,
        rtmr1=report.rtmr1,
        rtmr2=report.rtmr2,
        platforms=(
            EndorsedPlatform(
                "pinned",
                report.mrtd if mrtd is None else from_hex(mrtd, "expected_mrtd_hex", 48),
                report.rtmr0,
            ),
        ),
        mrseams=frozenset({report.mrseam})
        if seams is None
        else frozenset(from_hex(one, "expected_mrseam_allowlist", 48) for one in seams),
        tcb_statuses=frozenset(
            status for status, word in QV_RESULTS.items() if word in pins.accepted_qv_results
        ),
        minimum_tcb_evaluation_data_number=pins.min_tcb_evaluation_data_number,
        fmspcs=None if fmspc is None else frozenset({from_hex(fmspc, "expected_fmspc_hex", 6)}),
        td_attributes=report.td_attributes,
        xfam=report.xfam,
        minimum_tee_tcb_svn=bytes(16),
        allow_dynamic_platform=True,
        allow_cached_keys=True,
        allow_smt=True,
    )
    named = {name: getattr(pins, name) for name in PINS}
    given: dict[str, Any] = {
        PINS[name][0]: from_hex(text, name, PINS[name][1])
        for name, text in named.items()
        if text is not None
    }
    return replace(policy, **given)


def _collateral(given: TdxCollateralInput) -> TdxCollateral:
    return collateral_from_answers(
        tcb_info=given.tcb_info_json.encode(),
        tcb_info_issuer_chain=_issuer(given.tcb_info_issuer_chain_pem),
        qe_identity=given.qe_identity_json.encode(),
        qe_identity_issuer_chain=_issuer(given.qe_identity_issuer_chain_pem),
        pck_crl=from_base64(given.pck_crl_der_b64, "pck_crl_der_b64"),
        root_ca_crl=from_base64(given.root_crl_der_b64, "root_crl_der_b64"),
    )


def _issuer(chain: str | None) -> str:
    """Both documents are signed by the one key."""
    return intel_collateral().tcb_info_issuer_chain if chain is None else chain


def _root(given: TdxCollateralInput | None) -> str:
    """A root that the case brings is believed, as the contract says: it may be a synthetic one."""
    if given is None or given.intel_root_ca_pem is None:
        return INTEL_ROOT
    try:
        return spki_sha256(x509.load_pem_x509_certificate(given.intel_root_ca_pem.encode()))
    except ValueError as error:
        raise Malformed("intel_root_ca_pem: it is not a PEM certificate") from error


def _outputs(claims: TdxClaims) -> dict[str, Any]:
    """`qv_result` is OK where the TCB was not to be evaluated: the contract has no other word."""
    outputs: dict[str, Any] = {
        "measurement": shown(claims),
        "qv_result": "OK",
        "quote_version": claims.quote_version,
        "tee_type": "TDX",
        "fmspc_hex": claims.platform.fmspc.hex(),
        "header_fields": {
            "attestation_key_type": 2,
            "qe_vendor_id_hex": claims.qe_vendor_id.hex(),
            "user_data_hex": claims.user_data.hex(),
        },
        "body_fields": _body(claims),
    }
    if claims.tcb is not None:
        outputs["qv_result"] = QV_RESULTS[claims.tcb.status]
        outputs["tcb_status"] = str(claims.tcb.status)
        outputs["collateral_expired"] = False
    return outputs


def _body(claims: TdxClaims) -> dict[str, Any]:
    report = claims.report
    names = (
        "tee_tcb_svn", "mrseam", "mrsignerseam", "seam_attributes", "td_attributes", "xfam",
        "mrtd", "mrconfigid", "mrowner", "mrownerconfig", "report_data",
    )  # fmt: skip
    bits = int.from_bytes(report.td_attributes, "little")
    return {
        **{f"{name}_hex": getattr(report, name).hex() for name in names},
        "rtmrs_hex": [getattr(report, name).hex() for name in _REGISTERS],
        "td_attributes_decoded": {
            "tud_debug": bool(bits & DEBUG),
            "tud_reserved_nonzero": _any(bits, 1, 7),
            "sec_reserved_lower_nonzero": _any(bits, 8, 27),
            "sec_sept_ve_disable": bool(bits & SEPT_VE_DISABLE),
            "sec_reserved_bit29": _any(bits, 29, 29),
            "sec_pks": bool(bits & PKS),
            "sec_kl": _any(bits, 31, 31),
            "other_reserved_nonzero": _any(bits, 32, 62),
            "other_perfmon": bool(bits & PERFMON),
        },
    }


def _any(bits: int, first: int, last: int) -> bool:
    return bool(bits >> first & (1 << last - first + 1) - 1)
