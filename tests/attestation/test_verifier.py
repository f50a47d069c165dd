"""The live gate, over real TLS: a fresh nonce, the very key, bounds, deadlines, interruption."""

from __future__ import annotations

import asyncio
import datetime as dt
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agent.attestation.collateral import Endorsements, PcsResponse
from agent.attestation.document import MAX_DOCUMENT_BYTES, CpuKind
from agent.attestation.fetch import EvidenceFetcher
from agent.attestation.policy import EvidencePolicy
from agent.attestation.port import NothingClaimedError, NotYetError, Verdict
from agent.attestation.recogniser import Recogniser
from agent.attestation.snp_tcb import Product
from agent.attestation.unattested import Unattested
from agent.attestation.verifier import Endorser, Verifier
from agent.config import AttestationConfig, SnpConfig, SnpMinimum, TcbMinimum
from agent.model.enclave import Endpoint
from agent.model.evidence_edition import FIRST_EVIDENCE_EDITION
from agent.model.release import Release
from simulator.rows import enclave, release
from tests.attestation.refusals import GOOD
from tests.fakes.attested_guest import Guest
from tests.fakes.evidence_guest import Clock, Served
from tests.fakes.snp_chain import MEASUREMENT, NOW, tcb_bytes
from tests.fakes.tls_guest import cut, endlessly, hang, identity, reply

HOUR = dt.timedelta(hours=1)
RELEASE = release(snp_measurement=MEASUREMENT.hex())
ROW = enclave()


class Cache:
    """An endorser that knows one chip and one list. `late`: its vendor does not answer yet."""

    def __init__(
        self,
        known: Endorsements | None = None,
        crls: tuple[bytes, ...] = (),
        *,
        late: bool = False,
    ) -> None:
        self.known = known
        self.crls = crls
        self.late = late
        self.asked: list[bytes] = []
        self.believed: list[tuple[CpuKind, bytes]] = []

    async def endorsements(self, report: bytes) -> Endorsements | None:
        self.asked.append(report)
        if self.late:
            raise NotYetError("the vendor answered 429")
        return self.known

    async def revocation_lists(self, report: bytes, ark: bytes) -> tuple[bytes, ...]:
        assert ark == GOOD.amd.endorsements.ark
        return self.crls

    async def intel(self, quote: bytes) -> tuple[PcsResponse, ...]:
        return ()

    async def seen(self, kind: CpuKind, evidence: bytes) -> None:
        self.believed.append((kind, evidence))


def verifier(
    config: AttestationConfig | None = None,
    *,
    timeout_s: float = 5.0,
    endorser: Endorser | None = None,
    recogniser: Recogniser | None = None,
) -> Verifier:
    return Verifier(
        policy=EvidencePolicy(config=config or AttestationConfig(), allow_simulated=True),
        trust=GOOD.amd.trust,
        clock=Clock(),
        fetcher=EvidenceFetcher(timeout_s=timeout_s),
        endorser=endorser,
        recogniser=recogniser,
    )


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    guest = Served()
    yield guest
    await guest.stop()


async def judge(
    guest: Served, gate: Verifier | None = None, *, of: Release = RELEASE, key: str | None = None
) -> Verdict:
    endpoint = await guest.start()
    gate = gate or verifier()
    return await gate.verify(ROW, of, endpoint, key or guest.identity.spki_sha256)


def failed(verdict: Verdict) -> list[str]:
    return [check.code for check in verdict.checks if not check.passed]


async def test_a_guest_with_good_evidence_is_admitted(served: Served) -> None:
    verdict = await judge(served)
    assert failed(verdict) == []
    assert (verdict.attested, verdict.admits, verdict.simulated) == (True, True, True)


async def test_a_nonce_is_used_once(served: Served) -> None:
    endpoint = await served.start()
    gate = verifier()
    for _ in range(3):
        await gate.verify(ROW, RELEASE, endpoint, served.identity.spki_sha256)
    assert len(set(served.nonces)) == 3
    assert all(len(nonce) == 64 for nonce in served.nonces)
    assert len(served.visits) == 3


async def test_a_good_document_through_another_key_is_refused(served: Served) -> None:
    """Somebody between us and the guest: terminates TLS and passes good evidence on."""
    proxy = Served(who=identity("proxy"))
    proxy.guest = served.guest
    try:
        verdict = await judge(proxy)
        assert failed(verdict) == ["tls_key"]
        assert (verdict.attested, verdict.retry) == (False, False)
    finally:
        await proxy.stop()


async def test_evidence_that_came_over_a_key_of_the_moment_is_asked_for_once_more(
    served: Served,
) -> None:
    """A slow guest: its server took its own key while the connection was open."""
    moment = identity("of the moment")
    served.moments = [moment]
    gate, endpoint = verifier(), await served.start()
    verdict = await gate.verify(ROW, RELEASE, endpoint, moment.spki_sha256)
    assert (failed(verdict), verdict.admits) == (["tls_key_changed"], False)
    assert (verdict.attested, verdict.retry) == (None, True)
    assert len(served.visits) == 2
    assert (await gate.verify(ROW, RELEASE, endpoint, served.identity.spki_sha256)).admits


async def test_a_key_other_than_the_one_seen_before_is_no_verdict_and_is_asked_again(
    served: Served,
) -> None:
    """A guest takes its own key while it starts: that refuses nothing, and admits nothing."""
    gate, endpoint = verifier(), await served.start()
    verdict = await gate.verify(ROW, RELEASE, endpoint, "ab" * 32)
    assert (failed(verdict), verdict.admits) == (["tls_key_changed"], False)
    assert (verdict.attested, verdict.retry) == (None, True)
    with pytest.raises(NotYetError):
        await gate.evidence(ROW, RELEASE, endpoint, "ab" * 32, None)


async def test_whoever_asks_is_told_of_another_key_than_the_bound_one(served: Served) -> None:
    endpoint = await served.start()
    found = await verifier().evidence(ROW, RELEASE, endpoint, "ab" * 32, bytes(32))
    assert failed(found.verdict) == ["tls_key_changed"]
    assert found.verdict.attested is False


async def test_evidence_over_an_old_nonce_is_refused(served: Served) -> None:
    served.instead = reply(200, served.guest.v3())
    verdict = await judge(served)
    assert (failed(verdict), verdict.admits) == (["nonce_mismatch"], False)


async def test_another_image_than_the_release_s_is_refused(served: Served) -> None:
    other = release(snp_measurement="00" * 48)
    assert failed(await judge(served, of=other)) == ["snp_measurement"]


async def test_a_release_without_a_measurement_is_never_attested(served: Served) -> None:
    assert failed(await judge(served, of=release(snp_measurement=None))) == ["snp_measurement"]


async def test_a_guest_that_gathers_collateral_is_asked_again(served: Served) -> None:
    served.instead = reply(503, b"{}")
    endpoint = await served.start()
    gate = verifier()
    verdict = await gate.verify(ROW, RELEASE, endpoint, served.identity.spki_sha256)
    assert (verdict.retry, verdict.admits, failed(verdict)) == (True, False, ["evidence_not_yet"])
    assert verdict.attested is None
    served.instead = None
    later = await gate.verify(ROW, RELEASE, endpoint, served.identity.spki_sha256)
    assert later.admits


@pytest.mark.parametrize(
    "answer",
    [
        cut,
        hang,
        b"not HTTP\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\nConnection: close\r\n\r\n{",
    ],
)
async def test_a_guest_that_does_not_answer_is_asked_again(served: Served, answer: Any) -> None:
    served.instead = answer
    verdict = await judge(served, verifier(timeout_s=0.3))
    assert (verdict.retry, verdict.admits) == (True, False)


async def test_a_guest_that_is_not_there_is_asked_again() -> None:
    nowhere = Endpoint(address="127.0.0.1", port=1)
    verdict = await verifier().verify(ROW, RELEASE, nowhere, "ab" * 32)
    assert (verdict.retry, verdict.admits) == (True, False)


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (reply(404, b"nothing here"), "evidence_unavailable"),
        (reply(500, b"broken"), "evidence_unavailable"),
        (reply(302, b""), "evidence_unavailable"),
        (reply(200, b"<html>"), "document_malformed"),
        (reply(200, b"{}"), "document_malformed"),
        (reply(200, b" " * (MAX_DOCUMENT_BYTES + 1)), "document_too_large"),
    ],
)
async def test_a_wrong_answer_is_refused(served: Served, answer: bytes, code: str) -> None:
    served.instead = answer
    verdict = await judge(served)
    assert (failed(verdict), verdict.retry, verdict.admits) == ([code], False, False)


async def test_an_endless_answer_costs_no_more_than_its_bound(served: Served) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    served.instead = endlessly(head, b"4000\r\n" + bytes(0x4000) + b"\r\n")
    assert failed(await judge(served)) == ["document_too_large"]


async def test_an_old_guest_is_refused_unless_that_is_allowed() -> None:
    given = Cache(GOOD.amd.endorsements)
    for allow, codes in ((False, ["evidence_not_fresh"]), (True, [])):
        guest = Served(version=2)
        gate = verifier(AttestationConfig(allow_unfresh=allow), endorser=given)
        try:
            verdict = await judge(guest, gate)
        finally:
            await guest.stop()
        assert failed(verdict) == codes
        assert "evidence_not_fresh" in {check.code for check in verdict.checks}
    assert len(given.asked) == 2


async def test_without_certificates_from_anywhere_it_is_refused() -> None:
    guest = Served(version=2)
    try:
        verdict = await judge(guest)
    finally:
        await guest.stop()
    assert failed(verdict) == ["evidence_not_fresh", "endorsement_missing"]


async def test_a_list_is_looked_at_although_the_document_brings_none(served: Served) -> None:
    config = AttestationConfig(snp=SnpConfig(require_crl=True))
    assert failed(await judge(served, verifier(config))) == ["snp_revocation"]
    await served.stop()
    given = Cache(crls=(GOOD.amd.crl(),))
    assert failed(await judge(served, verifier(config, endorser=given))) == []
    await served.stop()
    revoked = Cache(crls=(GOOD.amd.crl(GOOD.amd.ask_serial),))
    verdict = await judge(served, verifier(config, endorser=revoked))
    assert failed(verdict) == ["certificate_revoked"]
    assert given.asked == []


BEFORE = enclave(evidence_edition=FIRST_EVIDENCE_EDITION)
OLD_FIRMWARE = GOOD.but(fields={"launch_tcb": tcb_bytes(Product.MILAN, snp=20)})


@pytest.mark.parametrize(
    ("guest", "endorser", "code"),
    [
        (OLD_FIRMWARE, None, "snp_launch_tcb"),
        (GOOD.but(fields={"id_key_digest": b"\xab"}), None, "snp_id_key_digest"),
        (GOOD.but(fields={"author_key_digest": b"\xab"}), None, "snp_author_key_digest"),
        (GOOD, Cache(crls=(GOOD.amd.crl(end=NOW - HOUR),)), "snp_revocation"),
    ],
)
async def test_what_was_admitted_before_a_default_became_stricter_is_judged_as_then(
    guest: Guest, endorser: Cache | None, code: str
) -> None:
    served = Served(guest)
    gate = verifier(endorser=endorser)
    try:
        endpoint = await served.start()
        spki = served.identity.spki_sha256
        today = await gate.verify(ROW, RELEASE, endpoint, spki)
        assert (today.attested, failed(today), today.stricter) == (False, [code], ())
        before = await gate.verify(BEFORE, RELEASE, endpoint, spki)
    finally:
        await served.stop()
    assert (before.attested, failed(before)) == (True, [])
    assert [check.code for check in before.stricter] == [code]


@pytest.mark.parametrize(
    ("guest", "snp", "code"),
    [
        (OLD_FIRMWARE, SnpConfig(minimum=SnpMinimum(snp=24)), "snp_launch_tcb"),
        (OLD_FIRMWARE, SnpConfig(launch_tcb=TcbMinimum(snp=24)), "snp_launch_tcb"),
        (GOOD, SnpConfig(require_crl=True), "snp_revocation"),
        (GOOD.but(fields={"policy": 0x30000 | 1 << 19}), SnpConfig(), "snp_debug"),
        (GOOD.but(fields={"measurement": bytes(48)}), SnpConfig(), "snp_measurement"),
    ],
)
async def test_what_was_configured_or_was_never_good_is_refused_whenever_it_was_admitted(
    guest: Guest, snp: SnpConfig, code: str
) -> None:
    served = Served(guest)
    try:
        endpoint = await served.start()
        verdict = await verifier(AttestationConfig(snp=snp)).verify(
            BEFORE, RELEASE, endpoint, served.identity.spki_sha256
        )
    finally:
        await served.stop()
    assert (verdict.attested, failed(verdict), verdict.stricter) == (False, [code], ())


async def test_certificates_that_a_vendor_has_yet_to_give_are_waited_for() -> None:
    guest = Served(version=2)
    late = Cache(GOOD.amd.endorsements, late=True)
    gate = verifier(AttestationConfig(allow_unfresh=True), endorser=late)
    try:
        verdict = await judge(guest, gate)
        assert (verdict.retry, failed(verdict)) == (True, ["evidence_not_yet"])
        late.late = False
        await guest.stop()
        assert (await judge(guest, gate)).admits
    finally:
        await guest.stop()


async def test_what_a_simulated_processor_says_is_no_hint_of_this_host_s_chip(
    served: Served,
) -> None:
    given = Cache()
    assert (await judge(served, verifier(endorser=given))).admits
    assert given.believed == []


async def test_evidence_is_served_untouched_with_what_it_was_held_against(served: Served) -> None:
    endpoint = await served.start()
    gate, key = verifier(), served.identity.spki_sha256
    with pytest.raises(NotYetError):
        await gate.evidence(ROW, RELEASE, endpoint, key, None)
    verdict = await gate.verify(ROW, RELEASE, endpoint, key)
    kept = await gate.evidence(ROW, RELEASE, endpoint, key, None)
    assert kept.verdict == verdict
    assert kept.nonce == served.nonces[0]
    assert kept.document == served.sent[0]
    assert kept.expected.snp_measurement == MEASUREMENT
    assert kept.observed_at == NOW.astimezone(dt.UTC)


async def test_a_caller_s_nonce_goes_to_the_guest_and_replaces_nothing(served: Served) -> None:
    endpoint = await served.start()
    gate, key = verifier(), served.identity.spki_sha256
    await gate.verify(ROW, RELEASE, endpoint, key)
    theirs = await gate.evidence(ROW, RELEASE, endpoint, key, bytes(32))
    assert (theirs.nonce, served.nonces[-1]) == ("00" * 32, "00" * 32)
    assert theirs.verdict.attested is True
    kept = await gate.evidence(ROW, RELEASE, endpoint, key, None)
    assert kept.nonce == served.nonces[0]


async def test_evidence_of_an_earlier_launch_is_not_shown_for_this_one(served: Served) -> None:
    endpoint = await served.start()
    gate, key = verifier(), served.identity.spki_sha256
    await gate.verify(ROW, RELEASE, endpoint, key)
    again = enclave(launch_uuid="00000000-0000-0000-0000-000000000009")
    with pytest.raises(NotYetError):
        await gate.evidence(again, RELEASE, endpoint, key, None)
    gate.forget(ROW.id)
    with pytest.raises(NotYetError):
        await gate.evidence(ROW, RELEASE, endpoint, key, None)


async def test_refused_evidence_is_kept_for_whoever_asks_why(served: Served) -> None:
    served.instead = reply(200, b"{}")
    endpoint = await served.start()
    gate, key = verifier(), served.identity.spki_sha256
    await gate.verify(ROW, RELEASE, endpoint, key)
    kept = await gate.evidence(ROW, RELEASE, endpoint, key, None)
    assert kept.document == b"{}"
    assert kept.verdict.attested is False


async def test_an_interrupted_question_leaves_nothing_behind(served: Served) -> None:
    served.instead = hang
    endpoint = await served.start()
    gate, key = verifier(), served.identity.spki_sha256
    asking = asyncio.create_task(gate.verify(ROW, RELEASE, endpoint, key))
    while not served.nonces:
        await asyncio.sleep(0.005)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    with pytest.raises(NotYetError):
        await gate.evidence(ROW, RELEASE, endpoint, key, None)
    served.instead = None
    assert (await gate.verify(ROW, RELEASE, endpoint, key)).admits


async def test_of_a_plain_vm_nothing_is_claimed() -> None:
    nowhere = Endpoint(address="127.0.0.1", port=1)
    assert await Unattested().verify(ROW, RELEASE, nowhere, "ab") == Verdict(attested=None)
    with pytest.raises(NothingClaimedError):
        await Unattested().evidence(ROW, RELEASE, nowhere, "ab", None)


def test_a_host_without_evidence_loads_no_library_for_it() -> None:
    program = (
        "import sys, agent.attestation.opening, agent.daemon.parts;"
        "print([name for name in sys.modules if name.startswith('cryptography')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
