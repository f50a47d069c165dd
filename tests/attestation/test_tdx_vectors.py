"""Genuine TDX quotes: what they claim, when they are believed, and what a policy makes of them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from agent.attestation.evidence import EvidenceError
from agent.attestation.tdx.claims import TdxClaims
from agent.attestation.tdx.platforms import EndorsedPlatform
from agent.attestation.tdx.policy import TdxPolicy, tdx_checks
from agent.attestation.tdx.quote import exact_size, parse_quote
from agent.attestation.tdx.verify import verify_quote, verify_signed_quote
from agent.model.tcb_status import TcbStatus
from tests.tdx_gpu_vectors import (
    OUTDATED_TIME,
    PHALA_TIME,
    needs_vectors,
    tdx_collateral,
    tdx_quote,
)

pytestmark = needs_vectors


def phala() -> TdxClaims:
    return verify_quote(tdx_quote("phala"), tdx_collateral("phala"), PHALA_TIME)


def phala_policy(claims: TdxClaims) -> TdxPolicy:
    report = claims.report
    return TdxPolicy(
        report_data=report.report_data,
        rtmr1=report.rtmr1,
        rtmr2=report.rtmr2,
        platforms=(EndorsedPlatform("a server", report.mrtd, report.rtmr0),),
        mrseams=frozenset({report.mrseam}),
        allow_dynamic_platform=True,
        allow_cached_keys=True,
        allow_smt=True,
    )


def failed(claims: TdxClaims, policy: TdxPolicy) -> list[str]:
    return [check.code for check in tdx_checks(claims, policy) if not check.passed]


def refusal(quote: bytes, collateral: str, now: datetime) -> str:
    with pytest.raises(EvidenceError) as caught:
        verify_quote(quote, tdx_collateral(collateral), now)
    return caught.value.code


def test_a_genuine_quote_claims_every_field_and_an_up_to_date_platform():
    claims = phala()
    report = claims.report
    assert claims.quote_version == 4
    assert report.tee_tcb_svn.hex() == "06010300000000000000000000000000"
    assert report.mrtd.hex().startswith("91eb2b44d141d4ece09f0c75c2c53d24")
    assert report.rtmr0.hex().startswith("44c0197b39157fdd")
    assert report.rtmr1.hex().startswith("0084452c01668329")
    assert report.rtmr2.hex().startswith("d833feef2cd94514")
    assert report.rtmr3 == bytes(48)
    assert report.report_data.hex().startswith("9a9d48e7f6799642")
    assert (report.tee_tcb_svn2, report.mrservicetd) == (None, None)
    assert claims.platform.fmspc.hex() == "b0c06f000000"
    assert claims.tcb is not None
    assert claims.tcb.status is TcbStatus.UP_TO_DATE
    assert claims.tcb.advisory_ids == ()
    assert claims.tcb.evaluation_data_number == 17
    # The PCK revocation list is the first document to end.
    assert claims.tcb.valid_until == datetime(2025, 7, 19, 10, 0, 35, tzinfo=UTC)
    assert "TCB level of the platform" in claims.judged


def test_a_genuine_quote_passes_the_policy_that_expects_it():
    claims = phala()
    checks = tdx_checks(claims, phala_policy(claims))
    assert [check.code for check in checks if not check.passed] == []
    assert len({check.code for check in checks}) == len(checks) >= 24


def test_the_platform_flags_of_a_genuine_server_are_refused_until_they_are_allowed():
    claims = phala()
    policy = phala_policy(claims)
    assert failed(claims, replace(policy, allow_dynamic_platform=False)) == [
        "tdx_dynamic_platform"
    ]
    assert failed(claims, replace(policy, allow_cached_keys=False)) == ["tdx_cached_keys"]
    assert failed(claims, replace(policy, allow_smt=False)) == ["tdx_smt"]


def test_a_quote_is_not_believed_outside_the_days_of_its_collateral():
    quote = tdx_quote("phala")
    before = datetime(2025, 6, 18, tzinfo=UTC)
    assert refusal(quote, "phala", before) == "tdx_tcb_info_expired"
    after = datetime(2025, 7, 20, tzinfo=UTC)
    assert refusal(quote, "phala", after) == "tdx_tcb_info_expired"


def test_a_quote_is_not_believed_after_its_certificates_have_ended():
    assert refusal(tdx_quote("phala"), "phala", datetime(2033, 1, 1, tzinfo=UTC)) == (
        "tdx_pck_chain_expired"
    )


def test_a_platform_below_every_level_of_intel_is_refused():
    assert refusal(tdx_quote("outdated"), "outdated", OUTDATED_TIME) == "tdx_tcb_level"


def test_collateral_of_another_platform_is_refused():
    assert refusal(tdx_quote("phala"), "outdated", OUTDATED_TIME) == "tdx_fmspc_mismatch"


def test_a_version_5_quote_is_read_with_its_own_layout():
    claims = verify_signed_quote(tdx_quote("outdated"), OUTDATED_TIME)
    assert claims.quote_version == 5
    assert claims.report.tee_tcb_svn.hex() == "07010300000000000000000000000000"
    assert claims.report.xfam.hex() == "e718060000000000"
    assert claims.report.tee_tcb_svn2 is not None
    assert claims.report.mrservicetd == bytes(48)


def test_signatures_alone_pass_no_policy():
    claims = verify_signed_quote(tdx_quote("phala"), PHALA_TIME)
    assert claims.tcb is None
    assert failed(claims, phala_policy(claims)) == ["tdx_tcb_status"]


def test_another_root_than_the_pinned_one_is_refused():
    with pytest.raises(EvidenceError) as caught:
        verify_signed_quote(tdx_quote("phala"), PHALA_TIME, root_spki_sha256="00" * 32)
    assert caught.value.code == "tdx_pck_chain_root"


def test_zero_padding_after_a_quote_is_not_part_of_it():
    quote = tdx_quote("phala")
    size = exact_size(quote)
    assert size == 4936 < len(quote)
    assert parse_quote(quote) == parse_quote(quote[:size])
    assert verify_quote(quote[:size], tdx_collateral("phala"), PHALA_TIME) == phala()


def test_other_bytes_after_a_quote_are_refused():
    quote = tdx_quote("spr-e4")
    with pytest.raises(EvidenceError) as caught:
        parse_quote(quote)
    assert caught.value.code == "tdx_quote_trailing_data"
    assert parse_quote(quote[: exact_size(quote)]).version == 4
