"""Revocation lists never go back, wherever an older one comes from; nor does Intel's kept TCB set.

Real signatures, real files, and the vendors' services on real TLS.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import AsyncIterator, Callable
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from agent.attestation.appraisal import read_document
from agent.attestation.collateral_cache.answer import VendorAnswer
from agent.attestation.collateral_cache.authentic import Roots
from agent.attestation.collateral_cache.cache import CollateralCache, CollateralNotYetError
from agent.attestation.collateral_cache.disk_cache import DiskCache
from agent.attestation.collateral_cache.endorser import CachedEndorser
from agent.attestation.collateral_cache.items import (
    AmdChain,
    AmdCrl,
    PckCa,
    PckCrl,
    QeIdentityItem,
    RootCrl,
    TcbInfoItem,
    name_of,
)
from agent.attestation.collateral_cache.vendor import Vendors
from agent.attestation.snp_tcb import Product, Signer
from agent.attestation.tdx.answers import collateral_of
from agent.attestation.tdx.collateral import TdxCollateral
from agent.attestation.tdx.revocation import newest_lists
from simulator.manual_clock import ManualClock
from tests.fakes import intel as intel_fake
from tests.fakes.attested_guest import NONCE, Guest
from tests.fakes.certificates import Issued
from tests.fakes.intel import FMSPC, FakeIntel
from tests.fakes.snp_chain import NOW, FakeAmd
from tests.fakes.tdx_guest import TdxGuest, answers_of
from tests.fakes.vendors import FakeVendors, serve_vendors

AMD = FakeAmd()
CRL = AmdCrl(Product.MILAN, Signer.VCEK)
CRL_PATH = "/vcek/v1/Milan/crl"
HOUR = dt.timedelta(hours=1)
REPORT = AMD.report()
ARK = AMD.endorsements.ark


@cache
def intel() -> FakeIntel:
    return FakeIntel()


class Agent:
    """One life of the cache over a state directory."""

    def __init__(
        self,
        vendors: FakeVendors,
        place: Path,
        *,
        at: dt.datetime = NOW,
        offline: bool = False,
        directory: Path | None = None,
        early: bool = False,
    ) -> None:
        self.clock = ManualClock()
        self.clock.jump_wall((at - self.clock.now().wall).total_seconds())
        self.disk_cache = DiskCache(place / "collateral")
        self.cache = CollateralCache(
            disk_cache=self.disk_cache,
            vendors=None if offline else Vendors(vendors.urls, tls=vendors.trust),
            roots=roots,
            clock=self.clock,
            directory=DiskCache(directory) if directory else None,
            chance=lambda: 0.5,
        )
        self.endorser = CachedEndorser(self.cache, self.disk_cache, roots, self.clock, early=early)

    async def lists(self) -> tuple[bytes, ...]:
        return await self.endorser.revocation_lists(REPORT, ARK)


def roots() -> Roots:
    return Roots(amd=AMD.trust, intel_spki_sha256=intel().root)


@pytest.fixture
async def vendors(tmp_path: Path) -> AsyncIterator[FakeVendors]:
    (tmp_path / "tls").mkdir()
    async with serve_vendors(tmp_path / "tls", AMD, intel()) as serving:
        yield serving


@pytest.fixture
async def begin(vendors: FakeVendors, tmp_path: Path) -> AsyncIterator[Callable[..., Agent]]:
    lives: list[Agent] = []

    def start(**more: Any) -> Agent:
        lives.append(Agent(vendors, tmp_path, **more))
        return lives[-1]

    yield start
    for life in lives:
        await life.cache.close()


Begin = Callable[..., Agent]


async def test_a_vendor_that_goes_back_is_not_followed(begin: Begin, vendors: FakeVendors) -> None:
    agent = begin()
    vendors.crl = newer = AMD.crl(number=8)
    assert await agent.lists() == (newer,)
    vendors.crl = AMD.crl(number=7, end=NOW + 90 * HOUR)
    agent.clock.advance(12 * 3600)
    await agent.cache.refresh_due()
    assert vendors.asked()[CRL_PATH] == 2
    assert await agent.lists() == (newer,)
    # Nor after a crash: the disk has the newer one.
    assert await begin(offline=True).lists() == (newer,)


async def test_an_operator_s_older_list_is_not_taken_for_the_agent_s(
    begin: Begin, vendors: FakeVendors, tmp_path: Path
) -> None:
    vendors.crl = newer = AMD.crl(5, number=8)
    assert await begin().lists() == (newer,)
    given = tmp_path / "given"
    given.mkdir()
    (given / name_of(CRL)).write_bytes(AMD.crl(number=7, end=NOW + 900 * HOUR))
    assert await begin(directory=given, offline=True).lists() == (newer,)
    newest = AMD.crl(number=9)
    (given / name_of(CRL)).write_bytes(newest)
    assert await begin(directory=given, offline=True).lists() == (newest,)


async def test_a_list_that_is_over_is_held_and_remembered_over_a_restart(
    begin: Begin, vendors: FakeVendors
) -> None:
    vendors.crl = over = AMD.crl(5, number=8, end=NOW + HOUR)
    assert await begin().lists() == (over,)
    later = NOW + 2 * HOUR
    vendors.instead[CRL_PATH] = lambda request: _down()
    again = begin(at=later)
    assert await again.lists() == (over,)
    with pytest.raises(CollateralNotYetError):
        await again.cache.get(CRL)  # it is not given out as a good one
    # An older one that is not over yet does not take its place.
    vendors.instead.clear()
    vendors.crl = AMD.crl(number=7, end=NOW + 900 * HOUR)
    assert await begin(at=later).lists() == (over,)
    vendors.crl = current = AMD.crl(number=9, end=NOW + 900 * HOUR)
    assert await begin(at=later).lists() == (current,)


def _down() -> Any:
    from aiohttp import web

    return web.Response(status=500)


@pytest.mark.parametrize("crash", [False, True])
async def test_a_newer_list_of_a_document_is_kept(begin: Begin, crash: bool) -> None:
    agent = begin(offline=True)
    first, second = AMD.crl(number=7), AMD.crl(0x10001, number=8)
    for crl in (second, first):
        guest = Guest(amd=AMD, crls=lambda crl=crl: (crl,))
        await agent.endorser.offer(read_document(guest.v3(), NONCE))
        if crash:
            agent = begin(offline=True)
        assert await agent.lists() == (second,)


async def test_a_forged_list_of_a_document_is_not_kept(begin: Begin) -> None:
    agent = begin(offline=True)
    for crl in (AMD.crl(number=99, signed_by="r2"), b"\x30\x00", AMD.crl(issuer="ARK-Genoa")):
        guest = Guest(amd=AMD, crls=lambda crl=crl: (crl,))
        await agent.endorser.offer(read_document(guest.v3(), NONCE))
    other = FakeAmd(root="r2")
    strange = Guest(amd=other, crls=lambda: (other.crl(number=99),))
    await agent.endorser.offer(read_document(strange.v3(), NONCE))
    assert await agent.lists() == ()
    assert await agent.cache.held(AmdChain(Product.MILAN, Signer.VCEK)) is not None


def pck_list(number: int, *, revokes: Issued | None = None) -> bytes:
    """Of the platform authority of Intel's."""
    return intel_list(intel().platform_ca, number, revokes=revokes)


def intel_list(issuer: Issued, number: int, *, revokes: Issued | None = None) -> bytes:
    begin = intel_fake.NOW - dt.timedelta(days=1)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.certificate.subject)
        .last_update(begin)
        .next_update(intel_fake.NOW + dt.timedelta(days=9))
        .add_extension(x509.CRLNumber(number), critical=False)
    )
    if revokes is not None:
        entry = x509.RevokedCertificateBuilder().revocation_date(begin)
        serial = revokes.certificate.serial_number
        builder = builder.add_revoked_certificate(entry.serial_number(serial).build())
    return builder.sign(issuer.key, hashes.SHA256()).public_bytes(Encoding.DER)


def collateral(pck: int, root: int) -> TdxCollateral:
    return msgspec.structs.replace(
        intel().collateral(),
        pck_crl=pck_list(pck),
        root_ca_crl=intel_list(intel().anchor, root),
    )


def tdx_guest(given: TdxCollateral) -> TdxGuest:
    return TdxGuest(vendor=intel, given=lambda: given, trust=None)


async def test_intel_s_newer_lists_of_a_document_are_kept_and_its_tcb_set_is_not(
    begin: Begin,
) -> None:
    agent = begin(offline=True, at=intel_fake.NOW)
    quote = intel().quote()
    for pck, root in ((8, 3), (7, 4)):
        document = read_document(tdx_guest(collateral(pck, root)).v3(), NONCE)
        await agent.endorser.offer(document)
    newest = (pck_list(8), intel_list(intel().anchor, 4))
    held = await agent.endorser.intel_lists(quote)
    assert [number_of(one) for one in held] == [number_of(one) for one in newest] == [8, 4]
    again = begin(offline=True, at=intel_fake.NOW)
    assert await again.endorser.intel_lists(quote) == held
    assert await again.cache.held(TcbInfoItem(FMSPC)) is None
    assert await again.cache.held(QeIdentityItem()) is None


def number_of(crl: bytes) -> int:
    found = x509.load_der_x509_crl(crl).extensions.get_extension_for_class(x509.CRLNumber)
    return found.value.crl_number


def test_of_intel_s_lists_the_newest_is_judged() -> None:
    given = collateral(7, 3)
    newer = pck_list(8, revokes=intel().pck)
    held = (newer, intel_list(intel().anchor, 2), b"rubbish", pck_list(6))
    judged = newest_lists(given, held)
    assert judged.pck_crl == newer
    assert judged.root_ca_crl == given.root_ca_crl
    assert newest_lists(msgspec.structs.replace(given, pck_crl=b"x"), held).pck_crl == b"x"


async def test_a_held_list_revokes_whatever_the_document_brings(begin: Begin) -> None:
    agent = begin(offline=True, at=intel_fake.NOW)
    revoking = msgspec.structs.replace(collateral(7, 3), pck_crl=pck_list(8, revokes=intel().pck))
    await agent.endorser.offer(read_document(tdx_guest(revoking).v3(), NONCE))
    (pck, _) = await agent.endorser.intel_lists(intel().quote())
    old = read_document(tdx_guest(collateral(7, 3)).v3(), NONCE)
    judged = newest_lists(collateral_of(old.collateral.intel), (pck,))
    assert judged.pck_crl == revoking.pck_crl


def tcb_body(number: int, issued: str) -> bytes:
    made = intel().collateral(tcb_info={"tcbEvaluationDataNumber": number, "issueDate": issued})
    info, *_ = answers_of(made)
    from base64 import b64decode

    return b64decode(info["body_base64"])


async def test_within_one_evaluation_number_there_is_no_going_back(begin: Begin) -> None:
    agent = begin(offline=True, at=intel_fake.NOW)
    item, chain = TcbInfoItem(FMSPC), _chain()

    async def kept_after(number: int, issued: str) -> tuple[int, str]:
        body = tcb_body(number, issued)
        await agent.cache.offer(item, VendorAnswer(body=body, chain=chain), None)
        held = await agent.cache.held(item)
        assert held is not None
        info = json.loads(held.body)["tcbInfo"]
        return info["tcbEvaluationDataNumber"], info["issueDate"]

    first, later = "2026-02-20T00:00:00Z", "2026-02-25T00:00:00Z"
    assert await kept_after(18, later) == (18, later)
    assert await kept_after(18, first) == (18, later)
    assert await kept_after(19, first) == (19, first)
    # Intel serves several numbers at once; which is the least is the policy's to say.
    assert await kept_after(18, first) == (18, first)


def _chain() -> str:
    from urllib.parse import quote

    return quote(intel().collateral().tcb_info_issuer_chain)


@pytest.mark.parametrize(("early", "query"), [(False, ""), (True, "update=early")])
async def test_the_kept_tcb_set_is_the_standard_one_unless_configured(
    begin: Begin, vendors: FakeVendors, early: bool, query: str
) -> None:
    agent = begin(at=intel_fake.NOW, early=early)
    parts = await agent.endorser.tdx_parts(intel().quote())
    assert [item for item, _ in parts] == [
        TcbInfoItem(FMSPC, early),
        QeIdentityItem(early),
        PckCrl(PckCa.PLATFORM),
        RootCrl(),
    ]
    asked = [path for path in vendors.seen if "/tdx/" in path]
    sets = [path for path in asked if "tcb?" in path]
    assert sets == [f"/tdx/certification/v4/tcb?fmspc={FMSPC.hex()}" + (query and f"&{query}")]
    names = {name_of(item) for item, _ in parts}
    assert (f"intel-tcb-info-{FMSPC.hex()}-early" in names) is early
