"""What evidence says of where it comes from: processor, launch, key, devices."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from typing import Any

import pytest

from agent.attestation.origin import Chip, ChipSource, Origin
from agent.attestation.recogniser import Recogniser
from agent.attestation.snp import verify_report
from agent.attestation.snp_tcb import Product, Signer
from agent.attestation.tdx.claims import PlatformClaims
from agent.attestation.tdx.verify import verify_signed_quote
from agent.attestation.verifier import Verifier
from agent.model.enclave import Enclave
from simulator.manual_clock import ManualClock
from simulator.memory_store import MemoryStore
from simulator.rows import deployment, enclave, release
from tests.attestation.refusals import GOOD
from tests.attestation.test_verifier import RELEASE, failed, verifier
from tests.fakes.attested_guest import Guest
from tests.fakes.evidence_guest import Served
from tests.fakes.intel import NOW as INTEL_NOW
from tests.fakes.intel import FakeIntel
from tests.fakes.snp_chain import NOW, FakeAmd
from tests.fakes.vectors import needs_vectors, read

SHORT = FakeAmd(product=Product.TURIN)


@pytest.mark.parametrize(
    ("amd", "fields", "chip"),
    [
        (FakeAmd(), {}, FakeAmd().chip_id.hex()),
        (SHORT, {}, SHORT.chip_id.hex()),
        (FakeAmd(signer=Signer.VLEK), {"chip_id": bytes(64)}, None),
        (FakeAmd(signer=Signer.VLEK), {"chip_id": b"\x01" * 64}, "01" * 64),
    ],
)
def test_a_report_names_its_chip_unless_it_is_masked(
    amd: FakeAmd, fields: dict[str, Any], chip: str | None
) -> None:
    claims = verify_report(amd.report(**fields), amd.endorsements, amd.trust, NOW)
    assert claims.chip == (Chip(source=ChipSource.SNP, value=chip) if chip else None)


@pytest.mark.parametrize(
    ("ppid", "instance", "chip"),
    [
        (b"\x01" * 16, b"\x02" * 16, Chip(source=ChipSource.INSTANCE, value="02" * 16)),
        (b"\x01" * 16, None, Chip(source=ChipSource.PPID, value="01" * 16)),
        (b"\x01" * 16, bytes(16), Chip(source=ChipSource.PPID, value="01" * 16)),
        (bytes(16), None, None),
        (None, None, None),
    ],
)
def test_a_platform_is_named_as_a_whole_where_it_is_else_by_its_package(
    ppid: bytes | None, instance: bytes | None, chip: Chip | None
) -> None:
    vendor = FakeIntel()
    signed = verify_signed_quote(vendor.quote(), INTEL_NOW, root_spki_sha256=vendor.root)
    platform = signed.platform
    named = PlatformClaims(
        fmspc=platform.fmspc,
        pce_id=platform.pce_id,
        ppid=ppid,
        instance=instance,
        dynamic_platform=None,
        cached_keys=None,
        smt=None,
    )
    assert replace(signed, platform=named).chip == chip


@needs_vectors
def test_the_genuine_platform_names_itself() -> None:
    quote = read("tdx/phala.quote.bin")
    claims = verify_signed_quote(quote, dt.datetime(2025, 6, 25, tzinfo=dt.UTC))
    assert claims.platform.ppid is not None
    assert len(claims.platform.ppid) == 16
    assert claims.chip is not None
    if claims.platform.instance is not None and any(claims.platform.instance):
        assert claims.chip.source is ChipSource.INSTANCE
    else:
        assert claims.chip == Chip(source=ChipSource.PPID, value=claims.platform.ppid.hex())


def test_a_verdict_says_of_whom_the_evidence_is_and_by_what_it_was_judged() -> None:
    guest = GOOD.but(fields={"report_id": b"\x11" * 32}, crls=lambda: (GOOD.amd.crl(),))
    verdict = guest.judged(guest.v3())
    assert verdict.origin == Origin(
        chip=Chip(source=ChipSource.SNP, value=GOOD.amd.chip_id.hex()),
        report_id="11" * 32,
        spki_sha256=guest.spki,
    )
    kinds = [one.kind for one in verdict.collateral]
    assert kinds == ["AMD ARK", "AMD ASK", "AMD VCEK", "AMD revocation list"]
    assert all(one.issued and one.until for one in verdict.collateral)


def test_evidence_whose_signature_does_not_hold_is_of_nobody() -> None:
    guest = GOOD.but(spoil=lambda report: report[:-600] + b"\x01" + report[-599:])
    verdict = guest.judged(guest.v3())
    assert (verdict.attested, verdict.origin, verdict.collateral) == (False, None, ())


ONE = enclave("aaaaaaaa", launch_uuid="00000000-0000-4000-8000-00000000000a")
TWO = enclave("bbbbbbbb", launch_uuid="00000000-0000-4000-8000-00000000000b")


async def gate(*rows: Enclave) -> Verifier:
    store = MemoryStore(ManualClock().now)

    def put(tx: Any) -> None:
        tx.put_deployment(deployment())
        for row in rows:
            tx.put_enclave(row)

    await store.transact(put)
    return verifier(recogniser=Recogniser(store, ManualClock(), "machine"))


def launched(report_id: bytes, guest: Guest = GOOD) -> Served:
    return Served(guest.but(fields={"report_id": report_id}))


async def test_a_gate_holds_what_guests_answer_against_what_it_learned() -> None:
    """Over real TLS: a launch, its next answer with another name, and a twin with its key."""
    made = await gate(ONE, TWO)
    served = launched(b"\x11" * 32)
    try:
        endpoint, spki = await served.start(), served.identity.spki_sha256
        for _ in range(2):
            first = await made.verify(ONE, RELEASE, endpoint, spki)
            assert (first.attested, failed(first)) == (True, [])
        served.guest = served.guest.but(fields={"report_id": b"\x22" * 32})
        assert failed(await made.verify(ONE, RELEASE, endpoint, spki)) == ["report_id"]
        twin = await made.verify(TWO, RELEASE, endpoint, spki)
        assert (failed(twin), twin.disputed) == (["tls_key_alone"], (ONE.id,))
    finally:
        await served.stop()


async def test_another_image_is_refused_before_anything_is_learned_of_it() -> None:
    made = await gate(ONE)
    served = launched(b"\x11" * 32)
    try:
        endpoint, spki = await served.start(), served.identity.spki_sha256
        other = release(snp_measurement="00" * 48)
        verdict = await made.verify(ONE, other, endpoint, spki)
        assert failed(verdict) == ["snp_measurement"]
        served.guest = served.guest.but(fields={"report_id": b"\x22" * 32})
        assert failed(await made.verify(ONE, RELEASE, endpoint, spki)) == []
    finally:
        await served.stop()
