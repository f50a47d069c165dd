"""TDX guests and their GPUs before the gate: whole documents, one wrong thing at a time."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from functools import cache
from typing import Any

import msgspec
import pytest

from agent.attestation.expected import Expected, expected_of
from agent.attestation.policy import EvidencePolicy
from agent.attestation.policy_tdx import policy_of
from agent.attestation.port import Verdict
from agent.attestation.roots import Trust
from agent.attestation.tdx.policy import TdxPolicy
from agent.attestation.verifier import Verifier
from agent.config import AttestationConfig, TdxConfig, TdxPlatform
from agent.model.resources import Demand
from agent.model.tcb_status import TcbStatus
from simulator.manual_clock import ManualClock
from simulator.rows import enclave, release
from tests.attestation.refusals import GOOD as GUEST
from tests.attestation.refusals import refused_for
from tests.attestation.test_verifier import Served
from tests.fakes.attested_guest import accept_everything
from tests.fakes.intel import NOW, FakeIntel
from tests.fakes.tdx_guest import (
    EXPECTED,
    Answers,
    TdxGuest,
    gpu_item,
    intel,
    nvidia,
    switch_item,
)
from tests.tdx_gpu_vectors import PHALA_TIME, needs_vectors, tdx_collateral, tdx_quote

GOOD = TdxGuest()
ONE_GPU = GOOD.but(items=lambda: [gpu_item(1)], expected=msgspec.structs.replace(EXPECTED, gpus=1))
BOARD = GOOD.but(
    items=lambda: [*(gpu_item(n) for n in range(8)), switch_item(1, 2)],
    expected=msgspec.structs.replace(EXPECTED, gpus=8),
)
OTHER = bytes(48)


def failed(verdict: Verdict) -> list[str]:
    return [check.code for check in verdict.checks if not check.passed]


def judged(guest: TdxGuest) -> list[str]:
    return failed(guest.judged(guest.v3()))


def expects(guest: TdxGuest = GOOD, **changes: Any) -> TdxGuest:
    return guest.but(expected=msgspec.structs.replace(guest.expected, **changes))


def shows(*items: Callable[[], dict[str, Any]], gpus: int = 1) -> TdxGuest:
    return expects(GOOD.but(items=lambda: [make() for make in items]), gpus=gpus)


def changed(**more: Any) -> TdxGuest:
    """The evidence of one GPU, with other members."""
    return shows(lambda: gpu_item(1, evidence=gpu_item(1)["evidence"] | more))


@cache
def smt() -> FakeIntel:
    return FakeIntel(flags=(False, False, True))


@cache
def typeless() -> FakeIntel:
    return FakeIntel(sgx_type=False)


def no(name: str) -> Callable[[Answers], object]:
    return lambda answers: [answers.remove(one) for one in list(answers) if name in one["url"]]


def twice(answers: Answers) -> None:
    answers.append(answers[0])


def set_header(answer: int, name: str, *values: str) -> Callable[[Answers], object]:
    return lambda answers: answers[answer].update(headers={name: list(values)})


@pytest.mark.parametrize("guest", [GOOD, ONE_GPU, BOARD], ids=["alone", "one GPU", "a board"])
def test_a_good_guest_is_accepted_and_every_check_is_listed(guest: TdxGuest) -> None:
    verdict = guest.judged(guest.v3())
    assert failed(verdict) == []
    assert verdict.attested is True
    assert verdict.simulated
    codes = [check.code for check in verdict.checks]
    assert {"evidence_fresh", "tls_key", "genuine_root", "tdx_signature", "tdx_validity"} <= {
        *codes
    }
    assert {"tdx_platform", "tdx_rtmr1", "tdx_rtmr2", "tdx_report_data"} <= {*codes}
    gpu = {"gpu_genuine_root", "gpu_count", "gpu_rim_not_checked", "gpu_ocsp_not_checked"}
    assert (gpu <= {*codes}) == bool(guest.expected.gpus)


@pytest.mark.parametrize("kind", [2, 3])
def test_a_newer_quote_is_accepted(kind: int) -> None:
    assert judged(GOOD.but(make={"version": 5, "body_type": kind})) == []


REFUSALS: dict[str, tuple[str, TdxGuest]] = {
    "no platform is endorsed": ("tdx_platform", GOOD.asks(platforms=())),
    "another platform's machine": ("tdx_platform", GOOD.but(fields={"rtmr0": OTHER})),
    "another platform's firmware": ("tdx_platform", GOOD.but(fields={"mrtd": OTHER})),
    "no module is endorsed": ("tdx_mrseam", GOOD.asks(mrseams=())),
    "another kernel": ("tdx_rtmr1", expects(rtmr1=OTHER)),
    "another command line": ("tdx_rtmr2", GOOD.but(fields={"rtmr2": OTHER})),
    "a register that the release leaves alone": (
        "tdx_rtmr3",
        GOOD.but(fields={"rtmr3": b"\1" * 48}),
    ),
    "an owner": ("tdx_mrowner", GOOD.but(fields={"mrowner": b"\1" * 48})),
    "an old report under a new document": (
        "tdx_report_data",
        GOOD.but(fields={"report_data": bytes(64)}),
    ),
    "a proxy with another key": ("tls_key", GOOD.but(shown_spki="ab" * 32)),
    "an old nonce": ("nonce_mismatch", GOOD.but(nonce=bytes(32))),
    "a weaker platform": ("tdx_tcb_status", GOOD.but(collateral={"status": "OutOfDate"})),
    "an advisory": (
        "tdx_advisories",
        GOOD.but(collateral={"advisories": ["INTEL-SA-1"]}).asks(
            refused_advisories=("INTEL-SA-1",)
        ),
    ),
    "an old evaluation": (
        "tdx_tcb_evaluation",
        GOOD.asks(minimum_tcb_evaluation_data_number=19),
    ),
    "an old module": ("tdx_tee_tcb_svn", GOOD.asks(minimum_tee_tcb_svn="07" + "00" * 15)),
    "another type of platform": ("tdx_fmspc", GOOD.asks(fmspcs=("00" * 6,))),
    "other attributes": ("tdx_attributes", GOOD.asks(td_attributes="00" * 8)),
    "other features": ("tdx_xfam", GOOD.asks(xfam="e718060000000000")),
    "SMT": ("tdx_smt", GOOD.but(vendor=smt, trust=lambda: Trust(intel=smt().root))),
    "another root": ("tdx_pck_chain_root", GOOD.but(trust=Trust)),
    "a simulated root in production": ("genuine_root", GOOD.but(allow_simulated=False)),
    "no TCB info": ("tdx_collateral_missing", GOOD.but(answers=no("/tcb"))),
    "no identity of the quoting enclave": (
        "tdx_collateral_missing",
        GOOD.but(answers=no("identity")),
    ),
    "no revocation list": ("tdx_collateral_missing", GOOD.but(answers=no("pckcrl"))),
    "no revocation list of the root": ("tdx_collateral_missing", GOOD.but(answers=no("Root"))),
    "an answer twice": ("tdx_collateral_malformed", GOOD.but(answers=twice)),
    "an answer without its chain": (
        "tdx_collateral_malformed",
        GOOD.but(answers=set_header(0, "Request-ID", "1")),
    ),
    "an answer with two chains": (
        "tdx_collateral_malformed",
        GOOD.but(answers=set_header(1, "SGX-Enclave-Identity-Issuer-Chain", "a", "b")),
    ),
    "a chain that is no text": (
        "tdx_collateral_malformed",
        GOOD.but(answers=set_header(0, "tcb-info-issuer-chain", "%ff")),
    ),
    "a chain that is none": (
        "tdx_tcb_info_chain_malformed",
        GOOD.but(answers=set_header(0, "tcb-info-issuer-chain", "x")),
    ),
    "an address that is none": (
        "tdx_collateral_malformed",
        GOOD.but(answers=lambda answers: answers[3].update(url="https://[")),
    ),
    "a platform of no SGX type": (
        "tdx_pck_sgx_type",
        GOOD.but(vendor=typeless, trust=lambda: Trust(intel=typeless().root)),
    ),
    "no quote at all": ("tdx_quote_truncated", GOOD.but(quote=lambda _: b"")),
}
GPU_REFUSALS: dict[str, tuple[str, TdxGuest]] = {
    "no GPU": ("gpu_count", shows()),
    "a GPU that the deployment has not": ("gpu_count", expects(ONE_GPU, gpus=0)),
    "one GPU too few": ("gpu_count", expects(ONE_GPU, gpus=2)),
    "a switch for a GPU": ("gpu_count", shows(lambda: switch_item(1))),
    "a GPU twice": (
        "gpu_distinct",
        shows(lambda: gpu_item(1), lambda: gpu_item(1, id="gpu9"), gpus=2),
    ),
    "a switch twice": (
        "gpu_distinct",
        shows(lambda: gpu_item(1), lambda: switch_item(1, 1)),
    ),
    "another nonce": ("gpu_nonce", shows(lambda: gpu_item(1, bytes(32)))),
    "another nonce than it says": ("gpu_nonce", changed(nonce="00" * 32)),
    "a switch of another nonce": (
        "gpu_nonce",
        shows(lambda: gpu_item(1), lambda: switch_item(1, nonce=bytes(32))),
    ),
    "another GPU's certificates": (
        "gpu_signature",
        shows(
            lambda: gpu_item(
                1,
                evidence=gpu_item(1)["evidence"]
                | {"certificate": gpu_item(2)["evidence"]["certificate"]},
            )
        ),
    ),
    "another root": (
        "gpu_chain_root",
        ONE_GPU.but(trust=lambda: Trust(intel=intel().root)),
    ),
    "another architecture": ("gpu_architecture", changed(arch="BLACKWELL")),
    "another format": ("gpu_format", shows(lambda: gpu_item(1, format="v2"))),
    "another vendor": ("gpu_format", shows(lambda: gpu_item(1, vendor="amd"))),
    "another kind": ("gpu_format", shows(lambda: gpu_item(1), lambda: gpu_item(2, kind="nic"))),
    "a switch that is listed as a GPU": (
        "gpu_kind",
        shows(lambda: gpu_item(1), lambda: gpu_item(2, evidence=_evidences(switch_item(2))[0])),
    ),
    "a GPU that is listed as a switch": (
        "gpu_kind",
        shows(lambda: switch_item(evidences=[gpu_item(1)["evidence"]])),
    ),
    "a number for text": ("gpu_malformed", changed(certificate=1)),
    "no certificate": ("gpu_malformed", shows(lambda: gpu_item(1, evidence={"arch": "HOPPER"}))),
    "no switches": ("gpu_malformed", shows(lambda: gpu_item(1), switch_item)),
    "switches that could not be asked": (
        "gpu_malformed",
        shows(lambda: gpu_item(1), lambda: switch_item(1, result_code=7)),
    ),
}


def _evidences(item: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = item["evidence"]["evidences"]
    return found


@pytest.mark.parametrize(("code", "guest"), REFUSALS.values(), ids=REFUSALS.keys())
def test_a_tdx_guest_is_refused_for_that_reason_and_no_other(code: str, guest: TdxGuest) -> None:
    verdict = guest.judged(guest.v3())
    assert failed(verdict) == [code]
    assert not verdict.admits
    (check,) = [check for check in verdict.checks if not check.passed]
    assert len(check.detail) > 10


@pytest.mark.parametrize(("code", "guest"), GPU_REFUSALS.values(), ids=GPU_REFUSALS.keys())
def test_gpus_are_refused_for_that_reason_and_no_other(code: str, guest: TdxGuest) -> None:
    verdict = guest.judged(guest.v3())
    assert set(failed(verdict)) == {code}
    assert not verdict.admits


DEBUG_TD = {"td_attributes": bytes.fromhex("0100001000000000")}
RESERVED = {"td_attributes": bytes.fromhex("0000001001000000")}
FIELDS = ("mrseam", "mrsignerseam", "mrconfigid", "mrowner", "mrownerconfig", "rtmr1", "rtmr2")


@pytest.mark.parametrize(
    ("fields", "codes"),
    [
        (DEBUG_TD, ["tdx_debug", "tdx_attributes"]),
        (RESERVED, ["tdx_attributes_reserved", "tdx_attributes"]),
        ({"xfam": bytes(8)}, ["tdx_xfam_required", "tdx_xfam"]),
        ({"mrtd": b"\7" * 48}, ["tdx_platform"]),
        ({"rtmr3": b"\7" * 48}, ["tdx_rtmr3"]),
        ({"tee_tcb_svn": bytes(16)}, ["tdx_tee_tcb_svn"]),
        *(({name: b"\7" * 48}, [f"tdx_{name}"]) for name in FIELDS),
    ],
)
def test_what_a_quote_says_is_named_before_collateral_is_blamed(
    fields: dict[str, bytes], codes: list[str]
) -> None:
    late = NOW + dt.timedelta(days=60)
    for guest, blamed in (
        (GOOD.but(answers=no("/tcb")), "tdx_collateral_missing"),
        (GOOD.but(now=late), "tdx_tcb_info_expired"),
        (GOOD.but(answers=set_header(0, "tcb-info-issuer-chain", "x")), "tdx_tcb_info_chain_malf"),
    ):
        verdict = guest.but(fields=fields).judged(guest.but(fields=fields).v3())
        told = failed(verdict)
        assert told[:-1] == codes
        assert told[-1].startswith(blamed)
        assert not verdict.admits


def test_without_collateral_a_quote_is_never_good_however_good_it_is() -> None:
    guest = GOOD.but(answers=no("/tcb"))
    verdict = guest.judged(guest.v3())
    assert verdict.attested is False
    assert verdict.simulated


def test_with_a_verifier_that_accepts_everything_none_of_these_tests_would_pass() -> None:
    rows = [*REFUSALS.values(), *GPU_REFUSALS.values()]
    failing = [code for code, _ in rows if not refused_for(accept_everything(GUEST, b""), code)]
    assert len(failing) == len(rows) >= 50


def test_what_is_not_checked_of_a_gpu_is_said() -> None:
    verdict = ONE_GPU.judged(ONE_GPU.v3())
    details = {check.code: check.detail for check in verdict.checks}
    assert "RIM" in details["gpu_rim_not_checked"]
    assert "OCSP" in details["gpu_ocsp_not_checked"]


def test_a_gpu_of_a_simulated_root_is_not_confidential_beside_a_genuine_processor() -> None:
    production = ONE_GPU.but(allow_simulated=False)
    assert failed(production.judged(production.v3())) == ["genuine_root", "gpu_genuine_root"]


def test_what_a_collector_adds_to_a_gpu_s_evidence_is_tolerated() -> None:
    more = {"version": "1.0", "driver_version": "1", "vbios_version": "none"}
    assert judged(changed(**more)) == []
    switches = shows(lambda: gpu_item(1), lambda: switch_item(1, 2, version="2"))
    assert judged(switches) == []


def test_answers_to_other_questions_and_from_other_hosts_are_left_alone() -> None:
    def more(answers: Answers) -> None:
        answers.append({"url": "https://x/sgx/certification/v4/qe/identity", "body_base64": ""})
        answers[0]["url"] = "http://10.0.0.1:8081/tdx/certification/v4/tcb"

    assert judged(GOOD.but(answers=more)) == []


def test_every_flag_that_is_allowed_passes() -> None:
    vendor = FakeIntel(flags=(True, True, True))
    guest = GOOD.but(vendor=lambda: vendor, trust=lambda: Trust(intel=vendor.root))
    flags = {"tdx_dynamic_platform", "tdx_cached_keys", "tdx_smt"}
    assert set(judged(guest)) == flags
    allowed = guest.asks(allow_dynamic_platform=True, allow_cached_keys=True, allow_smt=True)
    assert judged(allowed) == []


def test_a_weaker_status_that_is_allowed_passes() -> None:
    guest = GOOD.but(collateral={"status": "SWHardeningNeeded"})
    statuses = (TcbStatus.UP_TO_DATE, TcbStatus.SW_HARDENING_NEEDED)
    assert judged(guest.asks(tcb_statuses=statuses)) == []


def test_a_release_without_registers_is_never_good_enough() -> None:
    assert judged(GOOD.but(expected=Expected(snp_measurement=bytes(48)))) == [
        "tdx_rtmr1",
        "tdx_rtmr2",
    ]


def test_the_registers_that_are_expected_are_the_release_s() -> None:
    named = {"rtmr1": "01" * 48, "rtmr2": "02" * 48}
    expected = expected_of(release(tdx_measurement=named))
    assert (expected.rtmr1, expected.rtmr2) == (b"\1" * 48, b"\2" * 48)
    assert expected_of(release()).rtmr1 is None


def test_a_document_of_version_2_has_no_collateral_to_verify_a_quote_with() -> None:
    guest = GOOD.but(config=AttestationConfig(allow_unfresh=True, tdx=GOOD.config.tdx))
    assert failed(guest.judged(guest.v2())) == ["tdx_collateral_missing"]
    assert failed(GOOD.judged(GOOD.v2())) == ["evidence_not_fresh", "tdx_collateral_missing"]


def test_the_configuration_s_defaults_are_the_policy_s() -> None:
    ours = policy_of(TdxConfig(), Expected(report_data=bytes(64)))
    theirs = TdxPolicy(
        report_data=bytes(64), rtmr1=None, rtmr2=None, platforms=(), mrseams=frozenset()
    )
    assert ours == theirs


def test_every_demand_of_the_configuration_reaches_the_policy() -> None:
    """No key of the configuration that changes nothing."""
    other = {
        "platforms": (TdxPlatform(mrtd="ab" * 48, rtmr0="cd" * 48, name="a server"),),
        "mrseams": ("ef" * 48,),
        "tcb_statuses": (TcbStatus.OUT_OF_DATE,),
        "refused_advisories": ("INTEL-SA-1",),
        "minimum_tcb_evaluation_data_number": 5,
        "minimum_tee_tcb_svn": "01" * 16,
        "fmspcs": ("00" * 6,),
        "allow_dynamic_platform": True,
        "allow_cached_keys": True,
        "allow_smt": True,
        "td_attributes": "01" * 8,
        "xfam": "02" * 8,
    }
    fetched = {"update"}  # says what is kept, not what is good enough
    assert set(other) | fetched == set(TdxConfig.__struct_fields__)
    default = policy_of(TdxConfig(), Expected())
    made = [policy_of(TdxConfig(**{name: value}), Expected()) for name, value in other.items()]
    assert default not in made
    assert len(set(made)) == len(made)
    assert made[0].platforms[0].name == "a server"
    assert policy_of(GOOD.config.tdx, Expected()).platforms[0].name == "platform 1"


@needs_vectors
def test_of_a_genuine_quote_in_a_document_only_what_it_cannot_know_is_refused() -> None:
    """It was made for another nonce and key than ours; all else of it is as it must be."""
    registers = tdx_quote("phala")
    mrtd, rtmr0, rtmr1, rtmr2 = (registers[at : at + 48] for at in (184, 376, 424, 472))
    guest = GOOD.but(
        quote=lambda _: tdx_quote("phala"),
        given=lambda: tdx_collateral("phala"),
        now=PHALA_TIME,
        trust=Trust,
        allow_simulated=False,
        expected=Expected(rtmr1=rtmr1, rtmr2=rtmr2),
    ).asks(
        platforms=(TdxPlatform(mrtd=mrtd.hex(), rtmr0=rtmr0.hex()),),
        mrseams=(registers[64:112].hex(),),
        allow_dynamic_platform=True,
        allow_cached_keys=True,
        allow_smt=True,
    )
    verdict = guest.judged(guest.v3())
    assert failed(verdict) == ["tdx_report_data"]
    assert len(verdict.checks) >= 30
    assert not verdict.simulated
    validity = [check.detail for check in verdict.checks if check.code == "tdx_validity"]
    assert validity == ["what vouches for it is valid until 2025-07-19 10:00 UTC"]
    late = guest.but(now=PHALA_TIME + dt.timedelta(days=30))
    assert failed(late.judged(late.v3())) == ["tdx_report_data", "tdx_tcb_info_expired"]


def test_nothing_of_a_devices_list_can_be_changed_without_its_report_data() -> None:
    body = ONE_GPU.v3()
    other = ONE_GPU.but(items=lambda: [gpu_item(2)]).v3()
    spliced = msgspec.json.decode(body)
    spliced["device_evidence"] = msgspec.json.decode(other)["device_evidence"]
    assert failed(ONE_GPU.judged(msgspec.json.encode(spliced))) == ["document_inconsistent"]


@pytest.mark.parametrize(("gpus", "codes"), [(1, []), (2, ["gpu_count"])])
async def test_the_live_gate_holds_a_tdx_guest_against_its_release(
    gpus: int, codes: list[str]
) -> None:
    """Over TLS, with a nonce of the gate's own: quote and GPU answer to that very one."""
    clock = ManualClock()
    clock.jump_wall((NOW - clock.now().wall).total_seconds())
    gate = Verifier(
        policy=EvidencePolicy(config=GOOD.config, allow_simulated=True),
        trust=Trust(intel=intel().root, nvidia=nvidia().root),
        clock=clock,
    )
    served = Served(LiveGuest())
    registers = {"rtmr1": "01" * 48, "rtmr2": "02" * 48}
    one = release(tdx_measurement=registers, demand=Demand(memory_mib=256, vcpus=1, gpus=gpus))
    try:
        endpoint = await served.start()
        verdict = await gate.verify(enclave(), one, endpoint, served.identity.spki_sha256)
    finally:
        await served.stop()
    assert failed(verdict) == codes
    assert verdict.admits == (not codes)


class LiveGuest(TdxGuest):
    """Its GPU answers to the nonce that the guest was asked with."""

    def v3(self) -> bytes:
        return TdxGuest.v3(self.but(items=lambda: [gpu_item(1, self.nonce)]))
