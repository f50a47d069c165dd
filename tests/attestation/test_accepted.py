"""Evidence that is good: every product, version and signer; what is shown of it."""

from __future__ import annotations

from typing import Any

import pytest

from agent.attestation.port import Verdict
from agent.attestation.roots import PINNED, Trust
from agent.attestation.snp_tcb import Product, Signer
from agent.config import (
    AttestationConfig,
    SignerRule,
    SnpConfig,
    SnpFloors,
    SnpMinimum,
    TcbMinimum,
)
from tests.attestation.refusals import (
    GOOD,
    MILAN,
    SECOND,
    TURIN,
    VLEK,
    asks,
    expects,
    holds,
    of,
    says,
)
from tests.fakes.attested_guest import Guest
from tests.fakes.snp_chain import NOW, TCB, FakeAmd, der_integer, tcb_bytes

ALL = TcbMinimum(**{part: value for part, value in TCB.items() if part != "fmc"})


def any_signer(amd: FakeAmd, **fields: Any) -> Guest:
    return asks(signer=SignerRule.ANY).but(amd=amd, fields=fields)


def line(model: int, stepping: int, microcode: int, **more: int) -> Guest:
    """A chip of one CPUID line, with its certificate for that microcode."""
    product = Product.MILAN if model == 1 else Product.GENOA
    extension = ("3.8", der_integer(microcode))
    tcb = tcb_bytes(product, microcode=microcode, **more)
    tcbs = dict.fromkeys(("current_tcb", "reported_tcb", "committed_tcb", "launch_tcb"), tcb)
    amd = FakeAmd(product, extensions=(extension,))
    return of(amd, fields={"model": model, "stepping": stepping, **tcbs})


# The patch levels of AMD-SB-3019, by line: exactly those are enough, and one less is not.
LINES = {
    "Milan": (0x01, 1, 219),
    "Milan-X": (0x01, 2, 68),
    "Genoa": (0x11, 1, 84),
    "Genoa-X": (0x11, 2, 79),
    "Bergamo or Siena": (0xA0, 2, 25),
}
ACCEPTED: dict[str, Guest] = {
    **{f"a {name} at its floor": line(*floor) for name, floor in LINES.items()},
    "an old microcode of a line that is not known": line(0x01, 3, 5),
    "an old microcode where floors are off": line(0x01, 1, 5).but(
        config=asks(minimum=SnpFloors.NONE).config
    ),
    "the operator's own floors": line(0x01, 1, 5).but(
        config=asks(minimum=SnpMinimum(snp=24, microcode=5)).config
    ),
    "mitigations among those that there are": asks(
        minimum=SnpMinimum(launch_mitigations=0b101, current_mitigations=1 << 63)
    ).but(fields={"version": 5, "launch_mitigations": 0b111, "current_mitigations": 1 << 63 | 1}),
    "firmware that could be rolled back": says(committed_firmware=bytes((20, 55, 1))),
    "firmware that is committed": asks(require_committed=True),
    **{f"a {product}": of(FakeAmd(product)) for product in Product},
    **{f"a VLEK of a {one}": any_signer(FakeAmd(one, Signer.VLEK)) for one in Product},
    "version 2": says(version=2),
    "version 4": says(version=4),
    **{
        f"all that version {version} has of the platform": says(version=version, platform=bits)
        for version, bits in ((2, 0x3F), (3, 0xBF), (4, 0xBF), (5, 0xFF))
    },
    "a Turin whose memory is safe from the IOMMU": of(
        TURIN, fields={"version": 5, "platform": 0x64, "current_firmware": bytes((3, 58, 1))}
    ),
    "version 5": says(version=5, launch_mitigations=3, current_mitigations=1 << 63),
    "a Bergamo": of(FakeAmd(Product.GENOA), fields={"model": 0xA0}),
    "a Turin of the dense kind": of(TURIN, fields={"model": 0x11}),
    "a Siena by its certificate": of(
        FakeAmd(Product.GENOA, extensions=(("2", b"\x16\x08Siena-B1"),)), fields={"model": 0xA0}
    ),
    "a VLEK where chip keys are masked": any_signer(VLEK, signer=1 << 2 | 1 << 1),
    "a VLEK where chips are hidden": any_signer(VLEK, chip_id=bytes(64)),
    "authorities whose keys may be used for anything": GOOD.but(
        amd=FakeAmd(ark_usage=None, ask_usage=None), crls=lambda: (MILAN.crl(),)
    ),
    "a leaf that says what it is": of(FakeAmd(leaf_usage=True, leaf_is_ca=False)),
    "a list that names others": GOOD.but(
        crls=lambda: (MILAN.crl(7, 0x77),), config=asks(require_crl=True).config
    ),
    "an older list that revoked, beside a newer one": holds(
        lambda: MILAN.crl(0x10001, number=6), lambda: MILAN.crl(number=8)
    ),
    "a newer list that came": holds(
        lambda: MILAN.crl(number=8), lambda: MILAN.crl(0x10001, number=6, end=NOW - SECOND)
    ),
    "a held list that is over, where none is asked for": holds(
        None,
        lambda: MILAN.crl(end=NOW - SECOND),
        config=asks(require_crl=False).config,
    ),
    "a held list": holds(None, MILAN.crl, config=asks(require_crl=True).config),
    "an empty list": GOOD.but(crls=lambda: (MILAN.crl(),)),
    "exactly the minimums": asks(
        current_tcb=ALL, reported_tcb=ALL, committed_tcb=ALL, launch_tcb=ALL, minimum_abi="1.55"
    ),
    "an fmc asked of what has none": asks(launch_tcb=TcbMinimum(fmc=9)),
    "CXL that is allowed": asks(allow_cxl=True).but(fields={"policy": 0x30000 | 1 << 21}),
    "no SMT": asks(allow_smt=False).but(fields={"policy": 0x20000}),
    "one socket": asks(require_single_socket=True).but(fields={"policy": 0x30000 | 1 << 20}),
    "hidden ciphertext": asks(require_ciphertext_hiding=True).but(fields={"platform": 0x10}),
    "all other bits of the policy": says(policy=0x30000 | 0b111101 << 20),
    "a lower privilege that is allowed": asks(max_vmpl=3).but(fields={"vmpl": 3}),
    "a VCEK as asked": asks(signer=SignerRule.VCEK),
    "a VLEK as asked": asks(signer=SignerRule.VLEK).but(amd=VLEK),
    "a pinned id key": asks(id_key_digest="ab" * 48).but(fields={"id_key_digest": b"\xab" * 48}),
    "an ID key that the release states": expects(id_key_digest=b"\xab" * 48).but(
        fields={"id_key_digest": b"\xab" * 48}
    ),
    "an author's key that the release states": expects(author_key_digest=b"\xab" * 48).but(
        fields={"author_key_digest": b"\xab" * 48, "signer": 1}
    ),
    "a pinned author key": asks(author_key_digest="ab" * 48).but(
        fields={"author_key_digest": b"\xab" * 48}
    ),
    "host data as expected": expects(host_data=b"\1" * 32).but(fields={"host_data": b"\1" * 32}),
}


@pytest.mark.parametrize("guest", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_it_is_accepted_and_every_check_is_listed(guest: Guest) -> None:
    verdict = guest.judged(guest.v3())
    assert not [check for check in verdict.checks if not check.passed]
    assert verdict.attested is True
    assert verdict.admits
    codes = [check.code for check in verdict.checks]
    assert len(codes) == len(set(codes)) >= 25


@pytest.mark.parametrize("name", LINES)
def test_one_patch_level_below_the_floor_of_its_line_is_refused(name: str) -> None:
    model, stepping, microcode = LINES[name]
    guest = line(model, stepping, microcode - 1)
    verdict = guest.judged(guest.v3())
    failed = [check for check in verdict.checks if not check.passed]
    low = ["snp_current_tcb", "snp_reported_tcb", "snp_launch_tcb"]
    assert [one.code for one in failed] == low
    assert all("AMD-SB-3019 of 2025-02-03" in one.detail for one in failed)


@pytest.mark.parametrize(
    "guest", [says(version=2), line(0x01, 3, 5), of(TURIN)], ids=["version 2", "line", "Turin"]
)
def test_a_microcode_that_cannot_be_compared_is_told_and_the_rest_has_its_floor(
    guest: Guest,
) -> None:
    verdict = guest.judged(guest.v3())
    assert verdict.attested
    assert "was not compared" in detail(verdict, "snp_microcode_not_checked")
    low = tcb_bytes(guest.amd.product, snp=3)
    old = guest.but(fields={**guest.fields, "launch_tcb": low})
    failed = [check.code for check in old.judged(old.v3()).checks if not check.passed]
    assert failed == ["snp_launch_tcb"]


def test_a_floor_is_told_nowhere_where_it_is_known() -> None:
    guest = line(*LINES["Milan"])
    codes = {check.code for check in guest.judged(guest.v3()).checks}
    assert "snp_microcode_not_checked" not in codes


def detail(verdict: Verdict, code: str) -> str:
    (found,) = [check.detail for check in verdict.checks if check.code == code]
    return found


def test_a_verdict_says_by_whom_what_and_until_when() -> None:
    vlek = any_signer(VLEK)
    verdict = vlek.judged(vlek.v3())
    assert f"signed by a VLEK of Cloud under the root {VLEK.root_spki_sha256}" in detail(
        verdict, "snp_signature"
    )
    assert "2027-06-01 12:00" in detail(verdict, "snp_validity")
    assert "not checked" in detail(verdict, "snp_revocation")
    checked = GOOD.but(crls=lambda: (MILAN.crl(),))
    shown = checked.judged(checked.v3())
    assert "2026-06-02 12:00" in detail(shown, "snp_validity")
    assert "not checked" not in detail(shown, "snp_revocation")


def test_what_is_simulated_says_so_and_what_is_not_does_not() -> None:
    verdict = GOOD.judged(GOOD.v3())
    assert verdict.simulated
    assert "SIMULATED — NOT CONFIDENTIAL" in detail(verdict, "genuine_root")


def test_a_root_of_the_vendors_cannot_be_called_simulated() -> None:
    with pytest.raises(ValueError, match="cannot be a simulated one"):
        Trust(simulated=dict(PINNED))


def test_unfresh_evidence_that_is_allowed_says_so_in_its_verdict() -> None:
    guest = GOOD.but(config=AttestationConfig(allow_unfresh=True))
    verdict = guest.judged(guest.v2(), guest.amd.endorsements)
    assert verdict.attested is True
    assert "no nonce; attestation.allow_unfresh" in detail(verdict, "evidence_not_fresh")
    assert "evidence_fresh" not in {check.code for check in verdict.checks}


@pytest.mark.parametrize("config", [AttestationConfig(), AttestationConfig(allow_unfresh=True)])
def test_fresh_evidence_is_fresh_either_way(config: AttestationConfig) -> None:
    guest = GOOD.but(config=config)
    assert "held against the nonce" in detail(guest.judged(guest.v3()), "evidence_fresh")


def test_the_document_s_own_certificates_come_before_any_others() -> None:
    given: Any = of(FakeAmd(root="r2")).amd.endorsements
    assert GOOD.judged(GOOD.v3(), given).attested is True


def test_every_demand_of_the_configuration_can_refuse() -> None:
    """No key of the configuration that changes nothing."""
    from tests.attestation.refusals import POLICY

    changed = {
        name
        for _, guest in POLICY.values()
        for name in SnpConfig.__struct_fields__
        if getattr(guest.config.snp, name) != getattr(SnpConfig(), name)
    }
    used_elsewhere = {"require_crl", "max_vmpl", "allow_cxl"}
    assert changed | used_elsewhere == set(SnpConfig.__struct_fields__)
