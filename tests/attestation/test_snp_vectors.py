"""Genuine reports and the vendor's own chains: the right verdict, for the right reason."""

from __future__ import annotations

import base64
import datetime as dt
from typing import Any

import pytest

from agent.attestation.claims import SnpClaims
from agent.attestation.collateral import Endorsements, split_pem
from agent.attestation.document_v2 import unpack
from agent.attestation.evidence import EvidenceError
from agent.attestation.expected import Expected
from agent.attestation.policy import EvidencePolicy, check_claims
from agent.attestation.roots import Trust
from agent.attestation.snp import verify_report
from agent.attestation.snp_tcb import Product
from agent.config import AttestationConfig, SnpConfig, SnpFloors
from tests.fakes import vectors
from tests.fakes.vectors import needs_vectors

pytestmark = needs_vectors
needs_turin = pytest.mark.skipif(
    not (vectors.ROOT / "snp" / "turin.report.bin").is_file(),
    reason="../shared/vectors/snp has no report of a genuine Turin",
)
NOW = dt.datetime(2026, 6, 1, tzinfo=dt.UTC)


def chain(product: str, leaf: bytes) -> Endorsements:
    ask, ark = vectors.pem(f"roots/ask_ark_{product}.pem")
    return Endorsements(leaf=leaf, ask=ask, ark=ark)


def milan(name: str) -> SnpClaims:
    report = vectors.read(f"snp/{name}.report.bin")
    given = chain("milan", vectors.read(f"snp/{name}.vcek.der"))
    return verify_report(report, given, Trust(), NOW)


# They are of 2022: what was good then has no floor now.
OLD = SnpConfig(minimum=SnpFloors.NONE)
FLOORS = ["snp_current_tcb", "snp_reported_tcb", "snp_launch_tcb"]


def failed(claims: SnpClaims, config: SnpConfig = OLD, **expected: Any) -> list[str]:
    wanted = {"snp_measurement": claims.report.measurement, **expected}
    policy = EvidencePolicy(config=AttestationConfig(snp=config))
    checks = check_claims(claims, policy, Expected(**wanted), NOW)
    return [check.code for check in checks if not check.passed]


def test_a_genuine_milan_is_believed() -> None:
    claims = milan("milan")
    assert (claims.product, claims.simulated, claims.report.version) == (Product.MILAN, False, 2)
    assert claims.current.parts() == {"bootloader": 3, "tee": 0, "snp": 8, "microcode": 115}
    assert not failed(claims)


def test_the_firmware_of_an_old_genuine_milan_is_below_today_s_floors() -> None:
    assert failed(milan("milan"), SnpConfig()) == FLOORS


def test_a_genuine_genoa_of_today_is_good_by_default() -> None:
    case = vectors.case_input("attestation-sev", "200-real-sev-snp-happy")
    report = unpack(base64.b64decode(case["attestation_doc_b64"]))
    given = chain("genoa", base64.b64decode(case["vcek_der_b64"]))
    claims = verify_report(report, given, Trust(), NOW)
    assert claims.report.line == (0x19, 0x11, 1)
    assert failed(claims, SnpConfig(), host_data=claims.report.host_data) == []


@needs_turin
def test_a_genuine_turin_of_2026_is_good_by_default() -> None:
    """Version 5, platform info bit 6, firmware of ABI 1.58, mitigation vectors."""
    given = chain("turin_vcek", vectors.read("snp/turin.vcek.der"))
    now = dt.datetime(2026, 9, 19, tzinfo=dt.UTC)
    claims = verify_report(vectors.read("snp/turin.report.bin"), given, Trust(), now)
    assert (claims.report.version, claims.report.platform.raw) == (5, 0x64)
    assert failed(claims, SnpConfig()) == []


def test_a_genuine_milan_that_may_be_debugged_is_refused_for_that() -> None:
    claims = milan("milan-debug-on")
    assert failed(claims, host_data=claims.report.host_data) == ["snp_debug"]


@pytest.mark.parametrize(
    ("field", "code"),
    [
        ("host_data", "snp_host_data"),
        ("snp_policy", "snp_release_policy"),
        ("guest_svn", "snp_release_guest_svn"),
        ("id_key_digest", "snp_release_id_key_digest"),
    ],
)
def test_what_a_launch_in_one_file_fixes_is_compared_field_by_field(field: str, code: str) -> None:
    report = milan("milan").report
    same: dict[str, Any] = {
        "host_data": report.host_data,
        "snp_policy": report.policy.raw,
        "guest_svn": report.guest_svn,
        "id_key_digest": report.id_key_digest,
    }
    assert failed(milan("milan"), **same) == []
    value = same[field]
    other = value + 1 if isinstance(value, int) else bytes([value[0] ^ 1]) + value[1:]
    assert failed(milan("milan"), **(same | {field: other})) == [code]


def test_reports_are_not_believed_with_each_others_certificates() -> None:
    report = vectors.read("snp/milan.report.bin")
    given = chain("milan", vectors.read("snp/milan-debug-on.vcek.der"))
    with pytest.raises(EvidenceError) as caught:
        verify_report(report, given, Trust(), NOW)
    assert caught.value.code == "report_signature"


@pytest.mark.parametrize("name", ["milan", "genoa", "turin"])
def test_the_pins_are_the_vendors_roots(name: str) -> None:
    from agent.attestation.roots import PINNED
    from agent.attestation.snp_certificate import ca_key, is_signed_by, parse_certificate

    file = "turin_vcek" if name == "turin" else name
    for path in (f"roots/ask_ark_{file}.pem", f"roots/ask_ark_{name}_vlek.pem"):
        ask, ark = (parse_certificate(one, "it") for one in vectors.pem(path))
        assert PINNED[ark.spki_sha256] == name.capitalize()
        assert is_signed_by(ca_key(ark, 1), ark)
        assert is_signed_by(ca_key(ark, 1), ask)
        assert ask.spki_sha256 not in PINNED


@pytest.mark.parametrize("product", ["milan", "milan_vlek", "genoa", "turin_vcek", "turin_vlek"])
def test_the_vendors_chains_are_read_as_collateral_holds_them(product: str) -> None:
    path = f"roots/ask_ark_{product}.pem"
    assert split_pem(vectors.read(path).decode(), "it") == vectors.pem(path)
