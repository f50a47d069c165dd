"""The policy of TDX claims: every check, one wrong thing at a time. No signatures here."""

from __future__ import annotations

from dataclasses import fields, replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.attestation.evidence import EvidenceError
from agent.attestation.tdx.claims import PlatformClaims, TcbClaims, TdxClaims
from agent.attestation.tdx.platforms import EndorsedPlatform, endorsed_platform
from agent.attestation.tdx.policy import TdxPolicy, tdx_checks
from agent.attestation.tdx.quote import INTEL_QE_VENDOR_ID
from agent.attestation.tdx.registers import registers_from_hex
from agent.attestation.tdx.report import TdReport
from agent.model.tcb_status import TcbStatus
from tests.fakes.intel import FMSPC, REPORT, REPORT_15

CLAIMS = TdxClaims(
    quote_version=5,
    qe_vendor_id=INTEL_QE_VENDOR_ID,
    user_data=bytes(20),
    report=TdReport(**REPORT_15),
    platform=PlatformClaims(
        fmspc=FMSPC, pce_id=bytes(2), dynamic_platform=False, cached_keys=False, smt=False
    ),
    tcb=TcbClaims(
        status=TcbStatus.UP_TO_DATE,
        advisory_ids=(),
        tcb_date=datetime(2024, 3, 13, tzinfo=UTC),
        evaluation_data_number=18,
        valid_until=datetime(2026, 3, 20, tzinfo=UTC),
    ),
    checked=(),
    simulated=False,
)
POLICY = TdxPolicy(
    report_data=REPORT["report_data"],
    rtmr1=REPORT["rtmr1"],
    rtmr2=REPORT["rtmr2"],
    platforms=(EndorsedPlatform("a server", REPORT["mrtd"], REPORT["rtmr0"]),),
    mrseams=frozenset({REPORT["mrseam"]}),
)


def failed(claims: TdxClaims = CLAIMS, policy: TdxPolicy = POLICY) -> list[str]:
    return [check.code for check in tdx_checks(claims, policy) if not check.passed]


def test_a_platform_that_the_release_fixes_is_the_only_one() -> None:
    """As a launch in one measured file does, whatever the operator endorses."""
    own = EndorsedPlatform("of the release", REPORT["mrtd"], REPORT["rtmr0"])
    assert failed(policy=replace(POLICY, platforms=(), release_platform=own)) == []
    other = EndorsedPlatform("of the release", bytes(48), REPORT["rtmr0"])
    assert failed(policy=replace(POLICY, release_platform=other)) == ["tdx_platform"]


def with_report(**changes: bytes) -> TdxClaims:
    return replace(CLAIMS, report=replace(CLAIMS.report, **changes))


def with_tcb(**changes: object) -> TdxClaims:
    assert CLAIMS.tcb is not None
    return replace(CLAIMS, tcb=replace(CLAIMS.tcb, **changes))


def test_good_claims_pass_every_check():
    assert failed() == []


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("mrseam", "tdx_mrseam"),
        ("mrsignerseam", "tdx_mrsignerseam"),
        ("seam_attributes", "tdx_seam_attributes"),
        ("mrtd", "tdx_platform"),
        ("rtmr0", "tdx_platform"),
        ("rtmr1", "tdx_rtmr1"),
        ("rtmr2", "tdx_rtmr2"),
        ("rtmr3", "tdx_rtmr3"),
        ("mrconfigid", "tdx_mrconfigid"),
        ("mrowner", "tdx_mrowner"),
        ("mrownerconfig", "tdx_mrownerconfig"),
        ("mrservicetd", "tdx_mrservicetd"),
        ("report_data", "tdx_report_data"),
    ],
)
@given(data=st.data())
def test_a_register_with_any_bit_changed_fails_its_own_check_alone(
    name: str, code: str, data: st.DataObject
):
    value = bytearray(REPORT_15[name])
    bit = data.draw(st.integers(0, 8 * len(value) - 1))
    value[bit // 8] ^= 1 << bit % 8
    claims = with_report(**{name: bytes(value)})
    assert failed(claims) == [code]
    (check,) = [check for check in tdx_checks(claims, POLICY) if check.code == code]
    assert bytes(value).hex() in check.detail


def test_every_field_of_the_report_is_judged_but_the_modules_second_svn():
    judged = set()
    for one in fields(TdReport):
        changed = bytes(len(REPORT_15[one.name])) if any(REPORT_15[one.name]) else b"\x02"
        value = changed.ljust(len(REPORT_15[one.name]), b"\x01")
        if failed(with_report(**{one.name: value})):
            judged.add(one.name)
    # TEE_TCB_SVN2 is of a module loaded later; Intel's levels are for the first.
    assert {one.name for one in fields(TdReport)} - judged == {"tee_tcb_svn2"}


def test_a_debug_domain_is_refused_whatever_the_pin_says():
    debug = (1 | 1 << 28).to_bytes(8, "little")
    claims = with_report(td_attributes=debug)
    assert failed(claims) == ["tdx_debug", "tdx_attributes"]
    assert failed(claims, replace(POLICY, td_attributes=debug)) == ["tdx_debug"]


@pytest.mark.parametrize("bit", [1, 7, 8, 27, 29, 31, 32, 62])
def test_reserved_attributes_are_refused_whatever_the_pin_says(bit: int):
    attributes = (1 << 28 | 1 << bit).to_bytes(8, "little")
    policy = replace(POLICY, td_attributes=attributes)
    assert failed(with_report(td_attributes=attributes), policy) == ["tdx_attributes_reserved"]


@pytest.mark.parametrize("bit", [30, 63])
def test_a_known_attribute_passes_where_it_is_pinned_only(bit: int):
    attributes = (1 << 28 | 1 << bit).to_bytes(8, "little")
    claims = with_report(td_attributes=attributes)
    assert failed(claims) == ["tdx_attributes"]
    assert failed(claims, replace(POLICY, td_attributes=attributes)) == []


@pytest.mark.parametrize(
    ("xfam", "code"),
    [
        (0x602E6, "tdx_xfam_required"),
        (0x602E5, "tdx_xfam_required"),
        (0x602FF, "tdx_xfam_forbidden"),
        (0x8000_0000_0006_02E7, "tdx_xfam_forbidden"),
    ],
)
def test_impossible_features_are_refused_whatever_the_pin_says(xfam: int, code: str):
    value = xfam.to_bytes(8, "little")
    assert failed(with_report(xfam=value)) == [code, "tdx_xfam"]
    assert failed(with_report(xfam=value), replace(POLICY, xfam=value)) == [code]


@pytest.mark.parametrize("status", list(TcbStatus))
def test_only_the_statuses_that_are_allowed_pass_and_revoked_never(status: TcbStatus):
    claims = with_tcb(status=status)
    by_default = [] if status is TcbStatus.UP_TO_DATE else ["tdx_tcb_status"]
    assert failed(claims) == by_default
    allowing = replace(POLICY, tcb_statuses=frozenset({status}))
    assert failed(claims, allowing) == (["tdx_tcb_status"] if status == "Revoked" else [])
    assert failed(claims, replace(POLICY, tcb_statuses=frozenset())) == ["tdx_tcb_status"]


def test_a_refused_advisory_is_named():
    claims = with_tcb(advisory_ids=("INTEL-SA-00001", "INTEL-SA-00002"))
    assert failed(claims) == []
    policy = replace(POLICY, refused_advisories=frozenset({"INTEL-SA-00002"}))
    assert failed(claims, policy) == ["tdx_advisories"]


def test_an_older_evaluation_than_the_minimum_is_refused():
    assert failed(policy=replace(POLICY, minimum_tcb_evaluation_data_number=18)) == []
    assert failed(policy=replace(POLICY, minimum_tcb_evaluation_data_number=19)) == [
        "tdx_tcb_evaluation"
    ]


def test_claims_without_a_judged_tcb_pass_no_policy():
    everything = replace(POLICY, tcb_statuses=frozenset(TcbStatus))
    assert failed(replace(CLAIMS, tcb=None), everything) == ["tdx_tcb_status"]


@pytest.mark.parametrize("flag", ["dynamic_platform", "cached_keys", "smt"])
@pytest.mark.parametrize("state", [True, None])
def test_a_platform_flag_that_is_not_known_to_be_off_needs_leave(flag: str, state: bool | None):
    claims = replace(CLAIMS, platform=replace(CLAIMS.platform, **{flag: state}))
    assert failed(claims) == [f"tdx_{flag}"]
    assert failed(claims, replace(POLICY, **{f"allow_{flag}": True})) == []


@pytest.mark.parametrize("component", range(16))
def test_every_component_of_the_tcb_svn_has_its_own_minimum(component: int):
    svn = bytearray(b"\x05" * 16)
    minimum = replace(POLICY, minimum_tee_tcb_svn=bytes(svn))
    assert failed(with_report(tee_tcb_svn=bytes(svn)), minimum) == []
    svn[component] = 4
    claims = with_report(tee_tcb_svn=bytes([*svn[:component], 4, *([255] * (15 - component))]))
    assert failed(claims, minimum) == ["tdx_tee_tcb_svn"]


def test_no_endorsed_platforms_no_acceptance():
    policy = replace(POLICY, platforms=())
    assert failed(policy=policy) == ["tdx_platform"]
    (check,) = [c for c in tdx_checks(CLAIMS, policy) if c.code == "tdx_platform"]
    assert "no platform is endorsed" in check.detail


def test_two_endorsed_halves_make_no_platform():
    halves = (
        EndorsedPlatform("first", REPORT["mrtd"], bytes(48)),
        EndorsedPlatform("second", bytes(48), REPORT["rtmr0"]),
    )
    assert failed(policy=replace(POLICY, platforms=halves)) == ["tdx_platform"]
    both = (*halves, *POLICY.platforms)
    assert failed(policy=replace(POLICY, platforms=both)) == []


def test_no_listed_modules_no_acceptance():
    assert failed(policy=replace(POLICY, mrseams=frozenset())) == ["tdx_mrseam"]


def test_a_pinned_platform_type_and_vendor_are_compared():
    assert failed(policy=replace(POLICY, fmspcs=frozenset({FMSPC}))) == []
    assert failed(policy=replace(POLICY, fmspcs=frozenset())) == ["tdx_fmspc"]
    assert failed(replace(CLAIMS, qe_vendor_id=bytes(16))) == ["tdx_qe_vendor_id"]


def test_a_report_of_the_older_layout_has_no_service_domain_to_judge():
    claims = replace(CLAIMS, report=TdReport(**REPORT))
    assert failed(claims) == []
    assert "tdx_mrservicetd" not in {check.code for check in tdx_checks(claims, POLICY)}


@pytest.mark.parametrize("value", ["", "00", "zz" * 48, "00" * 49, "0" * 95 + "\n"])
def test_an_endorsed_register_must_be_48_bytes_of_hex(value: str):
    with pytest.raises(EvidenceError, match=r"a server: (mrtd|rtmr0)"):
        endorsed_platform("a server", value, "00" * 48)
    with pytest.raises(EvidenceError, match="a server: rtmr0"):
        endorsed_platform("a server", "AB" * 48, value)


def test_registers_are_five():
    assert registers_from_hex(["AB" * 48] * 5).hex() == ("ab" * 48,) * 5
    with pytest.raises(EvidenceError):
        registers_from_hex(["ab" * 48] * 6)
