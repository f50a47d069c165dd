"""Quotes and collateral of a self-made Intel, each wrong in one thing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

from agent.attestation.evidence import EvidenceError
from agent.attestation.tdx.claims import TdxClaims
from agent.attestation.tdx.collateral import (
    TdxCollateral,
    collateral_from_answers,
    decode_collateral,
)
from agent.attestation.tdx.verify import verify_quote
from agent.model.tcb_status import TcbStatus
from tests.fakes.certificates import issue, revocation_list
from tests.fakes.intel import (
    FMSPC,
    NEXT_UPDATE,
    NOW,
    REPORT_15,
    FakeIntel,
)

INTEL = FakeIntel()
OTHER = FakeIntel()


def verify(
    quote: bytes | None = None,
    collateral: TdxCollateral | None = None,
    *,
    intel: FakeIntel = INTEL,
    now: datetime = NOW,
) -> TdxClaims:
    return verify_quote(
        intel.quote() if quote is None else quote,
        intel.collateral() if collateral is None else collateral,
        now,
        root_spki_sha256=intel.root,
    )


def refusal(
    quote: bytes | None = None,
    collateral: TdxCollateral | None = None,
    *,
    intel: FakeIntel = INTEL,
    now: datetime = NOW,
) -> str:
    with pytest.raises(EvidenceError) as caught:
        verify(quote, collateral, intel=intel, now=now)
    return caught.value.code


def test_a_self_made_platform_is_believed_under_its_own_root_only():
    claims = verify()
    assert claims.platform.fmspc == FMSPC
    assert claims.tcb is not None
    assert claims.tcb.valid_until == datetime.fromisoformat(NEXT_UPDATE)
    with pytest.raises(EvidenceError) as caught:
        verify_quote(INTEL.quote(), INTEL.collateral(), NOW)
    assert caught.value.code == "tdx_pck_chain_root"


def test_a_version_5_quote_is_believed_with_every_field():
    claims = verify(INTEL.quote(version=5))
    assert claims.quote_version == 5
    assert {name: getattr(claims.report, name) for name in REPORT_15} == REPORT_15


def test_a_version_5_quote_may_hold_the_older_report():
    claims = verify(INTEL.quote(version=5, body_type=2))
    assert (claims.quote_version, claims.report.mrservicetd) == (5, None)


@pytest.mark.parametrize("body_type", [0, 1, 4, 0xFFFF])
def test_a_body_that_is_no_known_td_report_is_refused(body_type: int):
    assert refusal(INTEL.quote(version=5, body_type=body_type)) == "tdx_body_type"


def test_a_body_of_another_size_than_its_types_is_refused():
    quote = bytearray(INTEL.quote(version=5))
    quote[48:50] = (2).to_bytes(2, "little")
    assert refusal(bytes(quote)) == "tdx_quote_size"


@pytest.mark.parametrize(
    "flags", [(True, False, False), (False, True, False), (False, False, True)]
)
def test_the_platforms_flags_are_those_of_its_certificate(flags: tuple[bool, bool, bool]):
    platform = verify(intel=FakeIntel(flags=flags)).platform
    assert (platform.dynamic_platform, platform.cached_keys, platform.smt) == flags


@pytest.mark.parametrize("status", [one for one in TcbStatus if "Relaunch" not in one])
def test_every_status_but_revoked_is_claimed_for_the_policy_to_judge(status: TcbStatus):
    collateral = INTEL.collateral(status=status, advisories=["INTEL-SA-00837"])
    if status is TcbStatus.REVOKED:
        assert refusal(collateral=collateral) == "tdx_tcb_level"
        return
    tcb = verify(collateral=collateral).tcb
    assert tcb is not None
    assert (tcb.status, tcb.advisory_ids) == (status, ("INTEL-SA-00837",))


def test_a_status_that_nobody_knows_is_refused():
    assert refusal(collateral=INTEL.collateral(status="Excellent")) == "tdx_tcb_level"


@pytest.mark.parametrize("member", ["tcb_info", "qe_identity"])
def test_the_older_one_of_the_two_documents_says_how_new_the_evaluation_is(member: str):
    collateral = INTEL.collateral(**{member: {"tcbEvaluationDataNumber": 17}})
    tcb = verify(collateral=collateral).tcb
    assert tcb is not None
    assert tcb.evaluation_data_number == 17


def test_an_outdated_quoting_enclave_is_refused():
    assert refusal(INTEL.quote(qe_isv_svn=3)) == "tdx_tcb_level"


def test_a_module_that_intel_does_not_list_is_refused():
    quote = INTEL.quote(report={"tee_tcb_svn": bytes([6, 9, 3, *bytes(13)])})
    assert refusal(quote) == "tdx_tcb_level"


def test_an_attestation_key_that_the_quoting_enclave_does_not_bind_is_refused():
    assert refusal(INTEL.quote(bound=False)) == "tdx_attestation_key"


def test_a_quoting_enclave_of_another_signer_is_refused():
    assert refusal(INTEL.quote(qe_mrsigner=bytes(32))) == "tdx_qe_identity_mismatch"


@pytest.mark.parametrize(
    "identity",
    [
        {"mrsigner": "00" * 32},
        {"isvprodid": 1},
        {"attributes": "13" + "00" * 15},
        {"miscselect": "01000000"},
        {"attributesMask": "FF"},
        {"mrsigner": "DC"},
    ],
)
def test_a_quoting_enclave_unlike_its_identity_is_refused(identity: Mapping[str, Any]):
    assert refusal(collateral=INTEL.collateral(qe_identity=identity)) == "tdx_qe_identity_mismatch"


@pytest.mark.parametrize(
    ("info", "code"),
    [
        ({"fmspc": "00806f050000"}, "tdx_fmspc_mismatch"),
        ({"pceId": "0100"}, "tdx_fmspc_mismatch"),
        ({"fmspc": "xy"}, "tdx_collateral_malformed"),
        ({"id": "SGX"}, "tdx_tcb_info_kind"),
        ({"version": 2}, "tdx_tcb_info_kind"),
        ({"nextUpdate": "2026-02-28T23:59:59Z"}, "tdx_tcb_info_expired"),
        ({"issueDate": "2026-03-01T00:00:01Z"}, "tdx_tcb_info_expired"),
        ({"issueDate": "2026-02-01T00:00:00"}, "tdx_collateral_malformed"),
        ({"tcbLevels": []}, "tdx_tcb_level"),
    ],
)
def test_a_signed_tcb_info_must_be_this_platforms_and_in_date(info: Mapping[str, Any], code: str):
    assert refusal(collateral=INTEL.collateral(tcb_info=info)) == code


@pytest.mark.parametrize(
    ("identity", "code"),
    [
        ({"id": "QE"}, "tdx_qe_identity_kind"),
        ({"version": 3}, "tdx_qe_identity_kind"),
        ({"nextUpdate": "2026-02-28T23:59:59Z"}, "tdx_qe_identity_expired"),
        ({"issueDate": "2026-03-01T00:00:01Z"}, "tdx_qe_identity_expired"),
        ({"mrsigner": ""}, "tdx_collateral_malformed"),
    ],
)
def test_a_signed_qe_identity_must_be_of_the_kind_and_in_date(
    identity: Mapping[str, Any], code: str
):
    assert refusal(collateral=INTEL.collateral(qe_identity=identity)) == code


def test_documents_signed_by_a_platforms_own_key_are_refused():
    collateral = INTEL.collateral(signer=INTEL.pck)
    chain = INTEL.pck.pem + INTEL.platform_ca.pem
    changed = msgspec.structs.replace(
        collateral, tcb_info_issuer_chain=chain, qe_identity_issuer_chain=chain
    )
    assert refusal(collateral=changed) == "tdx_tcb_info_chain_root"
    # Of the right length and root, and still no TCB signing certificate.
    signer = issue("Intel SGX PCK Certificate", INTEL.anchor, ca=False)
    assert refusal(collateral=INTEL.collateral(signer=signer)) == "tdx_tcb_info_chain_invalid"


@pytest.mark.parametrize(
    "key",
    [
        rsa.generate_private_key(65537, 2048).public_key(),
        ed25519.Ed25519PrivateKey.generate().public_key(),
        ec.generate_private_key(ec.SECP384R1()).public_key(),
    ],
)
def test_a_signing_certificate_with_another_kind_of_key_is_refused(
    key: CertificatePublicKeyTypes,
):
    signer = issue("Intel SGX TCB Signing", INTEL.anchor, ca=False, public=key)
    assert refusal(collateral=INTEL.collateral(signer=signer)) == "tdx_tcb_info_chain_invalid"


def test_documents_under_another_root_are_refused():
    theirs = OTHER.collateral()
    changed = msgspec.structs.replace(
        INTEL.collateral(),
        qe_identity=theirs.qe_identity,
        qe_identity_signature=theirs.qe_identity_signature,
        qe_identity_issuer_chain=theirs.qe_identity_issuer_chain,
    )
    assert refusal(collateral=changed) == "tdx_qe_identity_chain_root"


def test_documents_of_an_ended_signing_certificate_are_refused():
    signer = issue("Intel SGX TCB Signing", INTEL.anchor, ca=False, end=NOW - timedelta(seconds=1))
    assert refusal(collateral=INTEL.collateral(signer=signer)) == "tdx_tcb_info_chain_expired"


@pytest.mark.parametrize("count", [0, 1, 3])
def test_an_issuer_chain_of_another_length_is_refused(count: int):
    pem = (INTEL.tcb_signing.pem + INTEL.platform_ca.pem + INTEL.anchor.pem) if count == 3 else ""
    pem = INTEL.tcb_signing.pem if count == 1 else pem
    changed = msgspec.structs.replace(INTEL.collateral(), tcb_info_issuer_chain=pem)
    assert refusal(collateral=changed) == "tdx_tcb_info_chain_incomplete"


def test_a_revoked_platform_issuer_or_signing_certificate_is_refused():
    for collateral in (
        INTEL.collateral(revoked_by_platform=[INTEL.pck.certificate]),
        INTEL.collateral(revoked_by_root=[INTEL.platform_ca.certificate]),
        INTEL.collateral(revoked_by_root=[INTEL.tcb_signing.certificate]),
    ):
        assert refusal(collateral=collateral) == "tdx_revoked"
    bystander = issue("Intel SGX PCK Certificate", INTEL.platform_ca, ca=False).certificate
    assert verify(collateral=INTEL.collateral(revoked_by_platform=[bystander])).tcb is not None


@pytest.mark.parametrize("member", ["pck_crl", "root_ca_crl"])
def test_a_revocation_list_must_be_the_issuers_and_in_date(member: str):
    issuer = INTEL.platform_ca if member == "pck_crl" else INTEL.anchor
    field = "pck_crl" if member == "pck_crl" else "root_crl"
    for der, code in (
        (revocation_list(issuer, end=NOW - timedelta(seconds=1)), "expired"),
        (revocation_list(issuer, begin=NOW + timedelta(seconds=1)), "expired"),
        (revocation_list(issuer, key=OTHER.anchor.key), "signature"),
        (revocation_list(INTEL.tcb_signing), "issuer"),
        (b"", "malformed"),
        (revocation_list(issuer) + b"\0", "malformed"),
    ):
        changed = msgspec.structs.replace(INTEL.collateral(), **{member: der})
        assert refusal(collateral=changed) == f"tdx_{field}_{code}"


def test_a_pck_certificate_of_another_issuer_is_refused():
    chain = OTHER.pck.pem + INTEL.platform_ca.pem + INTEL.anchor.pem
    assert refusal(INTEL.quote(chain=chain)) == "tdx_pck_chain_invalid"


def test_a_chain_under_an_issuer_that_is_none_of_intels_is_refused():
    strange = issue("Another CA", INTEL.anchor)
    leaf = issue("Intel SGX PCK Certificate", strange, ca=False)
    chain = leaf.pem + strange.pem + INTEL.anchor.pem
    assert refusal(INTEL.quote(chain=chain)) == "tdx_pck_chain_invalid"


def test_a_quote_signed_under_another_platforms_certificate_is_refused():
    pck = issue("Intel SGX PCK Certificate", INTEL.platform_ca, ca=False)
    chain = pck.pem + INTEL.platform_ca.pem + INTEL.anchor.pem
    assert refusal(INTEL.quote(chain=chain)) == "tdx_qe_report_signature"


def test_a_chain_with_the_root_left_out_is_incomplete():
    chain = INTEL.pck.pem + INTEL.platform_ca.pem
    assert refusal(INTEL.quote(chain=chain)) == "tdx_pck_chain_incomplete"


def test_collateral_is_asked_for_the_moment_and_not_remembered_beyond_its_days():
    quote, collateral = INTEL.quote(), INTEL.collateral()
    assert verify(quote, collateral).tcb is not None
    later = datetime(2026, 3, 20, 0, 0, 1, tzinfo=UTC)
    assert refusal(quote, collateral, now=later) == "tdx_tcb_info_expired"


def test_a_believed_document_lends_no_belief_to_a_changed_one():
    quote, collateral = INTEL.quote(), INTEL.collateral()
    assert verify(quote, collateral).tcb is not None
    changed = msgspec.structs.replace(
        collateral, tcb_info=collateral.tcb_info.replace('"TDX_01"', '"TDX_02"')
    )
    assert refusal(quote, changed) == "tdx_tcb_info_signature"


def answers(collateral: TdxCollateral) -> TdxCollateral:
    """Through the spelling of Intel's service and back."""
    info = (
        f'{{"tcbInfo":{collateral.tcb_info},"signature":"{collateral.tcb_info_signature.hex()}"}}'
    )
    identity = (
        f'{{"enclaveIdentity":{collateral.qe_identity},'
        f'"signature":"{collateral.qe_identity_signature.hex()}"}}\n'
    )
    return collateral_from_answers(
        tcb_info=info.encode(),
        tcb_info_issuer_chain=collateral.tcb_info_issuer_chain,
        qe_identity=identity.encode(),
        qe_identity_issuer_chain=collateral.qe_identity_issuer_chain,
        pck_crl=collateral.pck_crl,
        root_ca_crl=collateral.root_ca_crl,
    )


def flat(collateral: TdxCollateral, **changes: object) -> bytes:
    members = {
        name: value.hex() if isinstance(value, bytes) else value
        for name, value in msgspec.structs.asdict(collateral).items()
    }
    return json.dumps(members | changes).encode()


def test_both_spellings_of_collateral_keep_the_signed_bytes():
    collateral = INTEL.collateral()
    assert answers(collateral) == collateral
    assert decode_collateral(flat(collateral)) == collateral
    assert decode_collateral(flat(collateral, pck_crl_issuer_chain="")) == collateral


@pytest.mark.parametrize(
    "changes",
    [
        {"extra": "1"},
        {"tcb_info": None},
        {"tcb_info": {}},
        {"pck_crl": "0"},
        {"pck_crl": "0g"},
        {"pck_crl": "00 00"},
        {"qe_identity_signature": 1},
    ],
)
def test_flat_collateral_is_read_to_the_letter(changes: dict[str, object]):
    with pytest.raises(EvidenceError) as caught:
        decode_collateral(flat(INTEL.collateral(), **changes))
    assert caught.value.code == "tdx_collateral_malformed"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'{"tcbInfo":{}}',
        b'{"tcbInfo":{},"signature":"00","more":1}',
        b'{"tcbInfo":{},"signature":"xx"}',
        b'{"tcbInfo":"\xff","signature":"00"}',
        b" " * ((1 << 20) + 1),
    ],
)
def test_an_answer_of_intels_service_is_read_to_the_letter(body: bytes):
    collateral = INTEL.collateral()
    with pytest.raises(EvidenceError) as caught:
        collateral_from_answers(
            tcb_info=body,
            tcb_info_issuer_chain=collateral.tcb_info_issuer_chain,
            qe_identity=b"{}",
            qe_identity_issuer_chain=collateral.qe_identity_issuer_chain,
            pck_crl=collateral.pck_crl,
            root_ca_crl=collateral.root_ca_crl,
        )
    assert caught.value.code == "tdx_collateral_malformed"
