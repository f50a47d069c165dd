"""Stage verify-attestation-sev."""

from __future__ import annotations

import datetime as dt
from typing import Any

import msgspec

from agent.attestation.claims import SnpClaims
from agent.attestation.collateral import Endorsements, split_pem
from agent.attestation.document_v2 import unpack
from agent.attestation.evidence import EvidenceError
from agent.attestation.expected import Expected
from agent.attestation.measurement import MeasurementKind
from agent.attestation.policy_snp import check_snp
from agent.attestation.roots import PINNED, Trust
from agent.attestation.snp import verify_report
from agent.attestation.snp_certificate import parse_certificate
from agent.attestation.snp_report import REPORT_BYTES, GuestPolicy, PlatformInfo, SnpReport
from agent.attestation.snp_tcb import Product, Signer
from agent.config import SignerRule, SnpConfig, SnpFloors, TcbMinimum
from scripts.conformance_contract.inputs import SevEvidence, SevPolicy, from_base64, from_hex
from scripts.conformance_contract.material import amd_chain
from scripts.conformance_contract.outcome import Accepted, Malformed, Rejected, rejection

STAGE = "verify-attestation-sev"
OTHER = "QV_RESULT_TERMINAL_UNSPECIFIED"
CODES = {
    "report_length": "REPORT_TRUNCATED",
    "report_version": "WRONG_REPORT_VERSION",
    "report_algorithm": "REPORT_FORMAT_UNSUPPORTED",
    "report_reserved": "REPORT_FORMAT_UNSUPPORTED",
    "report_signer": "SIGNER_INFO_INVALID",
    "chip_key_masked": "SIGNER_INFO_INVALID",
    "product_unknown": "REPORT_FORMAT_UNSUPPORTED",
    "report_signature": "REPORT_SIGNATURE_INVALID",
    "certificate_malformed": "VCEK_CHAIN_INVALID",
    "certificate_name": "VCEK_CHAIN_INVALID",
    "certificate_signature": "VCEK_CHAIN_INVALID",
    "certificate_extension": "VCEK_CHAIN_INVALID",
    "certificate_revoked": "VCEK_CHAIN_INVALID",
    "certificate_not_yet_valid": "VCEK_CHAIN_INVALID",
    "certificate_expired": "VCEK_EXPIRED",
    "root_unknown": "ARK_UNTRUSTED",
    "product_mismatch": "VCEK_CHAIN_INVALID",
    "tcb_mismatch": "VCEK_TCB_MISMATCH",
    "hardware_id_mismatch": "VCEK_HWID_MISMATCH",
    "snp_debug": "GUEST_POLICY_DEBUG_SET",
    "snp_migration_agent": "GUEST_POLICY_MIGRATE_MA_SET",
    "snp_current_tcb": "TCB_OUT_OF_DATE",
    "snp_measurement": "MEASUREMENT_MISMATCH",
    "snp_host_data": "HOST_DATA_MISMATCH",
    "snp_report_data": "REPORT_DATA_MISMATCH",
    "snp_id_key_digest": "ID_KEY_DIGEST_MISMATCH",
    "snp_author_key_digest": "AUTHOR_KEY_DIGEST_MISMATCH",
}


def verify(given: SevEvidence) -> Accepted:
    """Raises Rejected, Malformed, Unsupported."""
    claims = believe(given)
    report = claims.report
    fields = {"measurement": shown(claims), "body_fields": _body(report, claims)}
    return Accepted(fields)


def believe(given: SevEvidence) -> SnpClaims:
    """The claims, once every pin of the case holds; what is not pinned is what the report says."""
    report = _report(given.attestation_doc_b64)
    now = moment(given.expiration_check_date_unix)
    try:
        endorsements, trust = _endorsements(given)
        claims = verify_report(report, endorsements, trust, now)
    except EvidenceError as error:
        raise rejection(CODES, error.code, str(error), other=OTHER) from error
    config, expected = _policy(given.policy, claims.report)
    for check in check_snp(claims, config, expected, now):
        if not check.passed:
            raise rejection(CODES, check.code, check.detail, other=OTHER)
    return claims


def shown(claims: SnpClaims) -> dict[str, Any]:
    """The measurement, as the contract names it."""
    registers = [claims.report.measurement.hex()]
    return {"type": str(MeasurementKind.SNP), "registers": registers}


def moment(unix: int | None) -> dt.datetime:
    """Raises Malformed for what is no moment."""
    try:
        return dt.datetime.now(dt.UTC) if unix is None else dt.datetime.fromtimestamp(unix, dt.UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise Malformed("expiration_check_date_unix: it is no moment") from error


def _report(text: str) -> bytes:
    try:
        report = unpack(from_base64(text, "attestation_doc_b64"))
    except EvidenceError as error:
        raise Malformed(f"attestation_doc_b64: {error}") from error
    if len(report) > REPORT_BYTES:
        raise Rejected("REPORT_FORMAT_UNSUPPORTED", f"{len(report)} bytes, not {REPORT_BYTES}")
    return report


def _endorsements(given: SevEvidence) -> tuple[Endorsements, Trust]:
    """An ARK that the case brings is believed, as the contract says: it may be a synthetic one."""
    leaf = from_base64(given.vcek_der_b64, "vcek_der_b64")
    ask = _certificate(given.ask_pem, "ask_pem")
    ark = _certificate(given.amd_root_ca_pem, "amd_root_ca_pem")
    if ask is None or ark is None:
        known_ask, known_ark = amd_chain(leaf)
        ask, ark = ask or known_ask, ark or known_ark
    root = parse_certificate(ark, "ARK")
    if root.spki_sha256 in PINNED:
        return Endorsements(leaf=leaf, ask=ask, ark=ark), Trust()
    name = root.common_name.removeprefix("ARK-")
    if name not in list(Product):
        raise Rejected("ARK_UNTRUSTED", f"an ARK of {name!r} is not known")
    trust = Trust(simulated={root.spki_sha256: Product(name)})
    return Endorsements(leaf=leaf, ask=ask, ark=ark), trust


def _certificate(pem: str | None, name: str) -> bytes | None:
    if pem is None:
        return None
    try:
        (certificate,) = split_pem(pem, name)
    except (EvidenceError, ValueError) as error:
        raise Malformed(f"{name}: it is not one PEM certificate") from error
    return certificate


def _policy(pins: SevPolicy, report: SnpReport) -> tuple[SnpConfig, Expected]:
    def pin(name: str, size: int, otherwise: bytes) -> bytes:
        text = getattr(pins, f"expected_{name}_hex")
        return otherwise if text is None else from_hex(text, f"expected_{name}_hex", size)

    config = SnpConfig(
        signer=SignerRule.ANY,
        minimum=SnpFloors.NONE,
        require_crl=False,
        current_tcb=TcbMinimum(
            bootloader=pins.min_tcb_bl_spl,
            tee=pins.min_tcb_tee_spl,
            snp=pins.min_tcb_snp_spl,
            microcode=pins.min_tcb_ucode_spl,
        ),
        id_key_digest=pin("id_key_digest", 48, report.id_key_digest).hex(),
        author_key_digest=pin("author_key_digest", 48, report.author_key_digest).hex(),
    )
    expected = Expected(
        snp_measurement=pin("measurement", 48, report.measurement),
        host_data=pin("host_data", 32, report.host_data),
        report_data=pin("report_data", 64, report.report_data),
    )
    return config, expected


def _body(report: SnpReport, claims: SnpClaims) -> dict[str, Any]:
    now, committed = report.current_firmware, report.committed_firmware
    raw = (
        "family_id", "image_id", "report_data", "measurement", "host_data", "id_key_digest",
        "author_key_digest", "report_id", "report_id_ma", "reported_tcb", "chip_id",
        "committed_tcb", "launch_tcb",
    )  # fmt: skip
    return {
        "version": report.version,
        "guest_svn": report.guest_svn,
        "vmpl": report.vmpl,
        "signature_algo": 1,
        "policy_hex": f"{report.policy.raw:016x}",
        "policy_decoded": _policy_bits(report.policy),
        "current_tcb_hex": report.current_tcb[::-1].hex(),  # the one that is shown as a number
        "current_tcb_decoded": {
            "bl_spl": claims.current.bootloader,
            "tee_spl": claims.current.tee,
            "snp_spl": claims.current.snp,
            "ucode_spl": claims.current.microcode,
        },
        "platform_info_hex": f"{report.platform.raw:016x}",
        "platform_info_decoded": _platform_bits(report.platform),
        "signer_info_hex": f"{_signer_info(report):08x}",
        **{f"{name}_hex": getattr(report, name).hex() for name in raw},
        **{f"current_{part}": value for part, value in msgspec.to_builtins(now).items()},
        **{f"committed_{part}": value for part, value in msgspec.to_builtins(committed).items()},
    }


def _signer_info(report: SnpReport) -> int:
    key = 1 if report.signer is Signer.VLEK else 0
    return key << 2 | report.chip_key_masked << 1 | report.author_key_enabled


def _policy_bits(policy: GuestPolicy) -> dict[str, Any]:
    return {
        "abi_minor": policy.abi_minor,
        "abi_major": policy.abi_major,
        "smt": policy.smt,
        "reserved_mbo": True,
        "migrate_ma": policy.migration_agent,
        "debug": policy.debug,
        "single_socket": policy.single_socket,
        "cxl_allow": policy.cxl,
        "mem_aes_256_xts": policy.memory_aes_256_xts,
        "raplmsr_dis": policy.rapl_disabled,
        "ciphertext_hiding_dram": policy.ciphertext_hiding,
    }


def _platform_bits(platform: PlatformInfo) -> dict[str, bool]:
    return {
        "smt_en": platform.smt,
        "tsme_en": platform.tsme,
        "ecc_en": platform.ecc,
        "rapl_dis": platform.rapl_disabled,
        "ciphertext_hiding": platform.ciphertext_hiding,
    }
