"""The vendors' collateral: asked for once, kept, renewed in time, and never believed."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import os
import ssl
from collections.abc import AsyncIterator, Callable
from email.utils import format_datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from agent.attestation.collateral_cache.answer import VendorAnswer
from agent.attestation.collateral_cache.authentic import Roots, authenticate, chain_pem
from agent.attestation.collateral_cache.cache import CollateralCache, CollateralNotYetError
from agent.attestation.collateral_cache.disk_cache import DiskCache
from agent.attestation.collateral_cache.endorser import CachedEndorser
from agent.attestation.collateral_cache.items import (
    AmdChain,
    AmdCrl,
    Item,
    PckCa,
    PckCrl,
    QeIdentityItem,
    RootCrl,
    TcbInfoItem,
    Vcek,
    name_of,
    path_of,
    voucher_of,
)
from agent.attestation.collateral_cache.pacing import LONGEST_S, asked_s, backoff_s
from agent.attestation.collateral_cache.token_bucket import TokenBuckets
from agent.attestation.collateral_cache.vendor import Vendors
from agent.attestation.document import CpuKind
from agent.attestation.evidence import EvidenceError
from agent.attestation.roots import Trust
from agent.attestation.snp import verify_report
from agent.attestation.snp_tcb import Product, Signer
from agent.attestation.tdx.collateral import collateral_from_answers
from agent.attestation.tdx.verify import verify_quote
from agent.host.files import StorageError
from simulator.manual_clock import ManualClock
from tests.fakes import intel as intel_fake
from tests.fakes.intel import FMSPC, FakeIntel
from tests.fakes.snp_chain import NOW, FakeAmd, tcb_bytes
from tests.fakes.vendors import FakeVendors, serve_vendors

AMD = FakeAmd()
GENOA = FakeAmd(product=Product.GENOA, root="ask")
REPORT = AMD.report()
VCEK = Vcek(Product.MILAN, AMD.chip_id, tcb_bytes(Product.MILAN))
CHAIN = AmdChain(Product.MILAN, Signer.VCEK)
CRL = AmdCrl(Product.MILAN, Signer.VCEK)
CHIP_PATH = f"/vcek/v1/Milan/{AMD.chip_id.hex()}"
CRL_PATH = "/vcek/v1/Milan/crl"


@cache
def fake_intel() -> FakeIntel:
    return FakeIntel()


class Clock(ManualClock):
    def __init__(self, at: dt.datetime = NOW) -> None:
        super().__init__()
        self.jump_wall((at - self.now().wall).total_seconds())


class Agent:
    """One life of the cache over a state directory."""

    def __init__(
        self,
        vendors: FakeVendors,
        tmp_path: Path,
        *,
        clock: Clock | None = None,
        offline: bool = False,
        directory: Path | None = None,
        deadline_s: float = 5.0,
        require_crl: bool = False,
        tls: ssl.SSLContext | None = None,
        believed: tuple[FakeAmd, ...] = (),
    ) -> None:
        self.clock = clock or Clock()
        self.disk_cache = DiskCache(tmp_path / "collateral")
        asking = Vendors(vendors.urls, tls=tls or vendors.trust, deadline_s=deadline_s)
        self.cache = CollateralCache(
            disk_cache=self.disk_cache,
            vendors=None if offline else asking,
            roots=lambda: roots(*believed),
            clock=self.clock,
            directory=DiskCache(directory) if directory else None,
            chance=lambda: 0.5,
        )
        self.endorser = CachedEndorser(
            self.cache,
            self.disk_cache,
            lambda: roots(*believed),
            self.clock,
            require_crl=require_crl,
        )


def roots(*more: FakeAmd) -> Roots:
    simulated = dict(AMD.trust.simulated)
    for amd in more:
        simulated |= amd.trust.simulated
    return Roots(amd=Trust(simulated=simulated), intel_spki_sha256=fake_intel().root)


@pytest.fixture
async def vendors(tmp_path: Path) -> AsyncIterator[FakeVendors]:
    directory = tmp_path / "tls"
    directory.mkdir()
    async with serve_vendors(directory, AMD, fake_intel()) as serving:
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


async def test_what_stands_for_a_report_comes_from_the_vendor_and_holds(
    begin: Begin, vendors: FakeVendors
) -> None:
    given = await begin().endorser.endorsements(REPORT)
    assert given is not None
    claims = verify_report(REPORT, given, AMD.trust, NOW)
    assert claims.revocation_checked
    query = "blSPL=4&teeSPL=1&snpSPL=24&ucodeSPL=219"
    assert set(vendors.seen) == {f"{CHIP_PATH}?{query}", "/vcek/v1/Milan/cert_chain", CRL_PATH}


async def test_turin_chips_are_asked_for_by_eight_bytes(tmp_path: Path) -> None:
    item = Vcek(Product.TURIN, bytes(range(64)), tcb_bytes(Product.TURIN))
    assert path_of(item) == (
        "/vcek/v1/Turin/0001020304050607?fmcSPL=2&blSPL=4&teeSPL=1&snpSPL=24&ucodeSPL=219"
    )


async def test_fifty_who_want_the_same_make_one_request(
    begin: Begin, vendors: FakeVendors
) -> None:
    agent = begin()
    vendors.free.clear()
    asking = [asyncio.create_task(agent.endorser.endorsements(REPORT)) for _ in range(50)]
    while not vendors.seen:
        await asyncio.sleep(0.005)
    vendors.free.set()
    found = await asyncio.gather(*asking)
    assert all(one == found[0] and one is not None for one in found)
    assert set(vendors.asked().values()) == {1}


async def test_an_asker_that_gives_up_takes_nothing_from_the_others(
    begin: Begin, vendors: FakeVendors
) -> None:
    agent = begin()
    vendors.free.clear()
    first, second = (asyncio.create_task(agent.cache.get(CHAIN)) for _ in range(2))
    while not vendors.seen:
        await asyncio.sleep(0.005)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    vendors.free.set()
    assert await second is not None
    assert vendors.asked() == {"/vcek/v1/Milan/cert_chain": 1}


async def test_when_all_give_up_nothing_is_left_and_the_next_one_asks_anew(
    begin: Begin, vendors: FakeVendors
) -> None:
    agent = begin()
    vendors.free.clear()
    asking = asyncio.create_task(agent.cache.get(CHAIN))
    while not vendors.seen:
        await asyncio.sleep(0.005)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    vendors.free.set()
    assert await agent.cache.get(CHAIN) is not None


async def test_a_restart_asks_the_vendor_for_nothing(begin: Begin, vendors: FakeVendors) -> None:
    first = await begin().endorser.endorsements(REPORT)
    vendors.seen.clear()
    assert await begin().endorser.endorsements(REPORT) == first
    assert await begin(offline=True).endorser.endorsements(REPORT) == first
    assert vendors.seen == []


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"\xff" * 100,
        b'{"version":2}',
        b"[" * 100_000,
        b'{"version":1,"name":"another","answer":{"body":""}}',
        b" " * (1 << 20),
    ],
)
async def test_a_damaged_file_is_as_good_as_none(
    begin: Begin, vendors: FakeVendors, tmp_path: Path, damage: bytes
) -> None:
    await begin().cache.get(CHAIN)
    file = tmp_path / "collateral" / f"{name_of(CHAIN)}.json"
    file.write_bytes(damage)
    assert await begin().cache.get(CHAIN) is not None
    assert vendors.asked()["/vcek/v1/Milan/cert_chain"] == 2
    assert json.loads(file.read_bytes())["name"] == name_of(CHAIN)


async def test_what_another_key_signed_is_not_taken_from_the_disk(
    begin: Begin, vendors: FakeVendors, tmp_path: Path
) -> None:
    """A whole file, in the right place."""
    agent = begin()
    await agent.endorser.endorsements(REPORT)
    agent.disk_cache.store(
        name_of(VCEK), VendorAnswer(body=AMD.but(leaf_signed_by="ark").endorsements.leaf)
    )
    assert await begin(offline=True).endorser.endorsements(REPORT) is None
    assert await begin().endorser.endorsements(REPORT) is not None


async def test_a_named_pipe_in_the_directory_blocks_nobody(begin: Begin, tmp_path: Path) -> None:
    (tmp_path / "collateral").mkdir(mode=0o700)
    os.mkfifo(tmp_path / "collateral" / f"{name_of(CHAIN)}.json")
    async with asyncio.timeout(5):
        assert await begin().cache.get(CHAIN) is not None


def test_the_oldest_files_go_and_foreign_ones_stay(tmp_path: Path) -> None:
    disk_cache = DiskCache(tmp_path, max_files=3)
    (tmp_path / "notes.txt").write_text("an operator's")
    (tmp_path / ".0123456789abcdef.new").write_text("a write that was killed")
    for number in range(5):
        disk_cache.store(f"intel-tcb-info-{number:012x}", VendorAnswer(body=b"x"))
        os.utime(tmp_path / f"intel-tcb-info-{number:012x}.json", ns=(number, number))
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [*(f"intel-tcb-info-{n:012x}.json" for n in (2, 3, 4)), "notes.txt"]


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    disk_cache = DiskCache(tmp_path / "kept")
    disk_cache.store("intel-qe-identity", VendorAnswer(body=b"old"))
    (tmp_path / "kept" / "intel-root-crl.json").mkdir()
    with pytest.raises(StorageError):
        disk_cache.store("intel-root-crl", VendorAnswer(body=b"new"))
    assert disk_cache.load("intel-root-crl") is None
    assert disk_cache.load("intel-qe-identity") == VendorAnswer(body=b"old")


async def test_a_disk_that_takes_nothing_costs_only_the_restart(
    begin: Begin, tmp_path: Path
) -> None:
    (tmp_path / "collateral").write_text("in the way")
    agent = begin()
    assert await agent.endorser.endorsements(REPORT) is not None


async def test_the_operator_s_directory_comes_first(
    begin: Begin, vendors: FakeVendors, tmp_path: Path
) -> None:
    await begin().endorser.endorsements(REPORT)
    offline = tmp_path / "given"
    (tmp_path / "collateral").rename(offline)
    vendors.seen.clear()
    agent = begin(directory=offline, offline=True)
    assert await agent.endorser.endorsements(REPORT) is not None
    assert await begin(directory=offline).endorser.endorsements(REPORT) is not None
    assert vendors.seen == []
    assert not (tmp_path / "collateral").exists()


async def test_a_bare_file_as_the_vendor_gives_it_is_taken(begin: Begin, tmp_path: Path) -> None:
    offline = tmp_path / "given"
    online = begin()
    await online.endorser.endorsements(REPORT)
    offline.mkdir()
    for item in (VCEK, CHAIN, CRL):
        kept = await online.cache.get(item)
        assert kept is not None
        (offline / name_of(item)).write_bytes(kept.answer.body)
    (tmp_path / "collateral").rename(tmp_path / "gone")
    agent = begin(directory=offline, offline=True)
    assert await agent.endorser.endorsements(REPORT) is not None


async def test_offline_without_anything_is_a_plain_no(begin: Begin) -> None:
    agent = begin(offline=True, clock=Clock(TDX_NOW))
    assert await agent.endorser.endorsements(REPORT) is None
    assert await agent.endorser.revocation_lists(REPORT, AMD.endorsements.ark) == ()
    assert await agent.endorser.intel(fake_intel().quote()) == ()


def busy(status: int, retry_after: str | None) -> Callable[[web.Request], web.Response]:
    headers = {"Retry-After": retry_after} if retry_after else {}
    return lambda _: web.Response(status=status, headers=headers)


@pytest.mark.parametrize("date", [False, True])
async def test_a_vendor_that_says_when_is_left_alone_until_then(
    begin: Begin, vendors: FakeVendors, date: bool
) -> None:
    agent = begin()
    when = format_datetime(NOW + dt.timedelta(seconds=40), usegmt=True) if date else "40"
    vendors.instead[CHIP_PATH] = busy(429, when)
    assert await agent.cache.get(CHAIN) is not None
    with pytest.raises(CollateralNotYetError) as refused:
        await agent.cache.get(VCEK)
    assert refused.value.wait_s == 40
    assert "429" in str(refused.value)
    asked = len(vendors.seen)
    agent.clock.advance(39)
    for item in (VCEK, CRL):  # the vendor is busy, not the item
        with pytest.raises(CollateralNotYetError) as waiting:
            await agent.cache.get(item)
        assert waiting.value.wait_s == pytest.approx(1)
    assert len(vendors.seen) == asked
    vendors.instead.clear()
    agent.clock.advance(1)
    assert await agent.cache.get(VCEK) is not None


async def test_waits_double_with_jitter_and_end_with_an_answer(
    begin: Begin, vendors: FakeVendors
) -> None:
    agent = begin()
    await agent.cache.get(CHAIN)
    vendors.instead[CHIP_PATH] = busy(500, None)
    for wait_s in (5, 10, 20, 40):  # half of 10, 20, 40, 80
        with pytest.raises(CollateralNotYetError) as refused:
            await agent.cache.get(VCEK)
        assert refused.value.wait_s == wait_s
        asked = len(vendors.seen)
        agent.clock.advance(wait_s - 0.5)
        with pytest.raises(CollateralNotYetError):
            await agent.cache.get(VCEK)
        assert len(vendors.seen) == asked
        agent.clock.advance(0.5)
    vendors.instead.clear()
    assert await agent.cache.get(VCEK) is not None


def test_backoff_is_full_jitter_within_bounds() -> None:
    assert backoff_s(1, 0.0) == 0
    assert backoff_s(1, 0.999) < 10
    assert backoff_s(50, 0.5) == LONGEST_S / 2
    assert backoff_s(10**6, 0.5) == LONGEST_S / 2


@pytest.mark.parametrize(
    ("text", "wait_s"),
    [
        (None, None),
        ("0", 0),
        (" 7 ", 7),
        ("999999", 6 * 3600),
        ("-5", None),
        ("soon", None),
        ("1e9", None),
        ("٣", None),
        (format_datetime(NOW - dt.timedelta(days=1), usegmt=True), 0),
        (format_datetime(NOW + dt.timedelta(days=9), usegmt=True), 6 * 3600),
    ],
)
def test_what_a_vendor_asks_for_is_read_with_care(text: str | None, wait_s: float | None) -> None:
    assert asked_s(text, NOW) == wait_s


async def test_what_the_vendor_does_not_have_is_not_asked_for_again_soon(
    begin: Begin, vendors: FakeVendors
) -> None:
    agent = begin()
    other = AMD.report(chip_id=b"\x07" * 64)
    for _ in range(3):
        assert await agent.endorser.endorsements(other) is None
    assert vendors.asked()[f"/vcek/v1/Milan/{'07' * 64}"] == 1


def html(_: web.Request) -> web.Response:
    return web.Response(body=b"<html>Welcome to the hotel's network</html>")


def endless(_: web.Request) -> web.Response:
    return web.Response(body=b"x" * (1 << 20))


def elsewhere(_: web.Request) -> web.Response:
    return web.Response(status=302, headers={"Location": "https://127.0.0.1:1/"})


def another_chip(_: web.Request) -> web.Response:
    other = AMD.but(extensions=(("4", b"\x09" * 64),))
    return web.Response(body=other.endorsements.leaf)


def another_tcb(_: web.Request) -> web.Response:
    other = AMD.but(extensions=(("3.8", b"\x02\x01\x09"),))
    return web.Response(body=other.endorsements.leaf)


def another_issuer(_: web.Request) -> web.Response:
    return web.Response(body=AMD.but(leaf_signed_by="ark").endorsements.leaf)


@pytest.mark.parametrize(
    "answer", [html, endless, elsewhere, another_chip, another_tcb, another_issuer]
)
async def test_a_wrong_answer_is_never_kept(
    begin: Begin, vendors: FakeVendors, tmp_path: Path, answer: Any
) -> None:
    agent = begin()
    vendors.instead[CHIP_PATH] = answer
    with pytest.raises(CollateralNotYetError):
        await agent.endorser.endorsements(REPORT)
    assert DiskCache(tmp_path / "collateral").load(name_of(VCEK)) is None
    vendors.instead.clear()
    agent.clock.advance(30)
    assert await agent.endorser.endorsements(REPORT) is not None


async def test_an_answer_cut_off_is_never_kept(
    begin: Begin, vendors: FakeVendors, tmp_path: Path
) -> None:
    vendors.cut_after = 100
    with pytest.raises(CollateralNotYetError):
        await begin().cache.get(CHAIN)
    assert not (tmp_path / "collateral").exists()


async def test_a_slow_vendor_is_given_up(begin: Begin, vendors: FakeVendors) -> None:
    vendors.free.clear()
    with pytest.raises(CollateralNotYetError, match=r"no answer in 0.2 s"):
        await begin(deadline_s=0.2).cache.get(CHAIN)


async def test_a_vendor_without_a_trusted_certificate_is_not_believed(
    begin: Begin, vendors: FakeVendors
) -> None:
    with pytest.raises(CollateralNotYetError, match="cannot be read"):
        await begin(tls=ssl.create_default_context()).cache.get(CHAIN)
    assert vendors.seen == []


async def test_a_list_is_renewed_before_its_end_and_used_until_then(
    begin: Begin, vendors: FakeVendors
) -> None:
    agent = begin()
    vendors.crl = AMD.crl(end=NOW + dt.timedelta(hours=10))
    first = await agent.cache.get(CRL)
    assert first is not None
    agent.clock.advance(4 * 3600)
    await agent.cache.refresh_due()
    assert vendors.asked()[CRL_PATH] == 1
    agent.clock.advance(3600)
    vendors.instead[CRL_PATH] = busy(429, "60")
    await agent.cache.refresh_due()
    assert await agent.cache.get(CRL) == first  # not renewed, but good until its end
    vendors.instead.clear()
    vendors.crl = AMD.crl(0x99, end=NOW + dt.timedelta(hours=20))
    agent.clock.advance(60)
    await agent.cache.refresh_due()
    renewed = await agent.cache.get(CRL)
    assert renewed is not None
    assert renewed.answer.body == vendors.crl
    assert vendors.asked()[CRL_PATH] == 3


async def test_a_list_past_its_end_is_never_given_out(begin: Begin, vendors: FakeVendors) -> None:
    agent = begin()
    vendors.crl = AMD.crl(end=NOW + dt.timedelta(hours=1))
    assert await agent.cache.get(CRL) is not None
    agent.clock.advance(3601)
    with pytest.raises(CollateralNotYetError):
        await agent.cache.get(CRL)  # neither memory nor disk nor the vendor has a newer one
    given = await agent.endorser.endorsements(REPORT)
    assert given is not None
    assert given.crls == ()
    with pytest.raises(CollateralNotYetError):
        await begin(require_crl=True, clock=agent.clock).endorser.endorsements(REPORT)


async def test_the_list_of_a_document_s_own_root_is_given(
    begin: Begin, vendors: FakeVendors
) -> None:
    agent = begin()
    vendors.crl = AMD.crl()
    ark = AMD.endorsements.ark
    assert await agent.endorser.revocation_lists(REPORT, ark) == (vendors.crl,)
    assert await agent.endorser.revocation_lists(REPORT, GENOA.endorsements.ark) == ()


async def test_a_report_that_names_no_product_is_asked_for_by_line(
    begin: Begin, vendors: FakeVendors
) -> None:
    vendors.amd = GENOA
    agent = begin(believed=(GENOA,))
    report = GENOA.report(version=2)
    given = await agent.endorser.endorsements(report)
    assert given is not None
    assert verify_report(report, given, GENOA.trust, NOW).product is Product.GENOA
    assert not vendors.asked()[CHIP_PATH]
    vendors.seen.clear()
    assert await agent.endorser.endorsements(report) == given
    assert vendors.seen == []


async def test_nobody_has_the_certificate_of_a_provider_s_key(
    begin: Begin, vendors: FakeVendors
) -> None:
    assert await begin().endorser.endorsements(AMD.report(signer=1 << 2)) is None
    assert vendors.seen == []


TDX_NOW = intel_fake.NOW


async def test_what_stands_for_a_quote_comes_from_the_vendor_and_holds(
    begin: Begin, vendors: FakeVendors
) -> None:
    agent = begin(clock=Clock(TDX_NOW))
    quote = fake_intel().quote()
    info, identity, pck_crl, root_crl = await agent.endorser.tdx_parts(quote)
    collateral = collateral_from_answers(
        tcb_info=info[1].answer.body,
        tcb_info_issuer_chain=chain_pem(info[1].answer),
        qe_identity=identity[1].answer.body,
        qe_identity_issuer_chain=chain_pem(identity[1].answer),
        pck_crl=pck_crl[1].answer.body,
        root_ca_crl=root_crl[1].answer.body,
    )
    claims = verify_quote(quote, collateral, TDX_NOW, root_spki_sha256=fake_intel().root)
    assert claims.tcb is not None
    assert claims.tcb.status == "UpToDate"
    responses = await agent.endorser.intel(quote)
    assert [response.url for response in responses] == [
        f"https://api.trustedservices.intel.com/tdx/certification/v4/tcb?fmspc={FMSPC.hex()}",
        "https://api.trustedservices.intel.com/tdx/certification/v4/qe/identity",
        "https://api.trustedservices.intel.com/sgx/certification/v4/pckcrl?ca=platform&encoding=der",
        "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der",
    ]
    assert sum(vendors.asked().values()) == 4
    again = begin(clock=Clock(TDX_NOW), offline=True)
    assert await again.endorser.intel(quote) == responses


@pytest.mark.parametrize(
    "item", [TcbInfoItem(FMSPC), QeIdentityItem(), PckCrl(PckCa.PLATFORM), RootCrl()]
)
async def test_intel_s_documents_are_refused_when_any_byte_is_another(
    begin: Begin, vendors: FakeVendors, item: Item
) -> None:
    agent = begin(clock=Clock(TDX_NOW))
    kept = await agent.cache.get(item)
    assert kept is not None
    wanted = voucher_of(item)
    voucher = await agent.cache.get(wanted) if wanted else None
    body = kept.answer.body
    for at in range(0, len(body), max(1, len(body) // 60)):
        changed = body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
        spoiled = type(kept.answer)(body=changed, chain=kept.answer.chain)
        with pytest.raises(EvidenceError):
            authenticate(item, spoiled, voucher.answer if voucher else None, roots(), TDX_NOW)


async def test_a_quote_that_nobody_signed_asks_nobody(begin: Begin, vendors: FakeVendors) -> None:
    quote = bytearray(fake_intel().quote())
    quote[600] ^= 1
    with pytest.raises(EvidenceError):
        await begin(clock=Clock(TDX_NOW)).endorser.intel(bytes(quote))
    assert vendors.seen == []


async def test_what_this_host_needs_is_fetched_before_it_is_asked_for(
    begin: Begin, vendors: FakeVendors
) -> None:
    agent = begin()
    seen = agent.endorser.changed.count
    await agent.endorser.seen(CpuKind.SNP, REPORT)
    await agent.endorser.seen(CpuKind.SNP, AMD.report(report_data=b"another question"))
    assert agent.endorser.changed.count == seen + 1
    assert vendors.seen == []
    again = begin()
    await again.endorser.recall()
    await again.endorser.prefetch()
    assert set(vendors.asked()) == {CHIP_PATH, "/vcek/v1/Milan/cert_chain", CRL_PATH}
    vendors.seen.clear()
    assert await again.endorser.endorsements(REPORT) is not None
    assert vendors.seen == []


async def test_a_prefetch_that_fails_is_no_failure(begin: Begin, vendors: FakeVendors) -> None:
    agent = begin()
    vendors.instead["/vcek/v1/Milan/cert_chain"] = busy(429, "10")
    await agent.endorser.seen(CpuKind.SNP, REPORT)
    await agent.endorser.seen(CpuKind.SNP, b"rubbish")
    await agent.endorser.prefetch()
    vendors.instead.clear()
    agent.clock.advance(10)
    await agent.endorser.prefetch()
    assert vendors.asked()[CHIP_PATH] == 1


def test_an_allowance_is_a_burst_and_then_a_pace_each_peer() -> None:
    buckets = TokenBuckets(burst=3, every_s=2.0, max_peers=2)
    assert [buckets.wait_s("a", 0.0) for _ in range(5)] == [0, 0, 0, 2, 2]
    assert buckets.wait_s("b", 0.0) == 0
    assert buckets.wait_s("a", 2.0) == 0
    assert buckets.wait_s("a", 2.0) == 2
    assert buckets.wait_s("c", 2.0) == 0  # b, longest silent, is forgotten
    assert [buckets.wait_s("a", 1000.0) for _ in range(4)] == [0, 0, 0, 2]
