"""The live gate: asks a guest for evidence over a fresh nonce and says what it is worth.

Invariants: the evidence is fetched over a connection of its own, whose key must be the very one
that it was asked about; a nonce is used once; the libraries that verify are loaded with the first
evidence, and work in a thread, so that a host without any pays nothing and the loop never waits.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol, assert_never

import msgspec

from agent.attestation.collateral import Endorsements, PcsResponse
from agent.attestation.document import NONCE_BYTES, CpuKind, DeviceItem, Document
from agent.attestation.evidence import EvidenceError
from agent.attestation.expected import Expected, ExpectedSource, expected_of
from agent.attestation.fetch import EvidenceFetcher, Fetched
from agent.attestation.policy import EvidencePolicy
from agent.attestation.port import (
    BINDS_KEY,
    KEY_CHANGED,
    Check,
    ChipNotAcceptedError,
    Evidence,
    NotYetError,
    Verdict,
)
from agent.attestation.recogniser import Recogniser
from agent.attestation.roots import Trust
from agent.host.clock import Clock
from agent.host.threads import finish_in_thread
from agent.model.enclave import Enclave, Endpoint
from agent.model.identity import KnownMachine
from agent.model.ids import DeploymentName, EnclaveId
from agent.model.release import Release

if TYPE_CHECKING:
    from agent.attestation.appraisal import EvidenceQuestion

log = logging.getLogger(__name__)


class Endorser(Protocol):
    """Where collateral comes from that a document does not carry: a cache, a directory.

    Methods raise NotYetError where a vendor is not to be asked now, and EvidenceError for evidence
    that cannot be read.
    """

    async def endorsements(self, report: bytes) -> Endorsements | None:
        """What vouches for this report, as far as it is known here; None if it is not."""
        ...

    async def revocation_lists(self, report: bytes, ark: bytes) -> tuple[bytes, ...]:
        """AMD's lists, in DER, for a report whose certificates end in this root."""
        ...

    async def intel(self, quote: bytes) -> tuple[PcsResponse, ...]:
        """Intel's answers for this quote: all that it needs, or none."""
        ...

    async def manifests(self, devices: Sequence[DeviceItem]) -> Mapping[str, bytes]:
        """NVIDIA's reference manifests for these devices, by id, as far as they are to be had."""
        ...

    async def seen(self, kind: CpuKind, evidence: bytes) -> None:
        """This evidence was believed: there will be more of its chip and TCB."""
        ...


class ListKeeper(Protocol):
    """Where revocation lists are kept, of which none is ever replaced by an older one."""

    async def intel_lists(self, quote: bytes) -> tuple[bytes, ...]:
        """Intel's lists for this quote that are here, in DER; no vendor is asked.

        Raises EvidenceError for a quote whose signatures do not hold.
        """
        ...

    async def offer(self, document: Document) -> None:
        """A document came with these lists: keep what is genuine and newer than what is here."""
        ...


class NoEndorser:
    """Documents carry what they need, or are refused."""

    async def endorsements(self, report: bytes) -> Endorsements | None:
        del report
        return None

    async def revocation_lists(self, report: bytes, ark: bytes) -> tuple[bytes, ...]:
        del report, ark
        return ()

    async def intel(self, quote: bytes) -> tuple[PcsResponse, ...]:
        del quote
        return ()

    async def manifests(self, devices: Sequence[DeviceItem]) -> Mapping[str, bytes]:
        del devices
        return {}

    async def seen(self, kind: CpuKind, evidence: bytes) -> None:
        """Nothing is remembered."""


class Verifier:
    """Implements `agent.attestation.port.Attestation`. Keeps the newest evidence an enclave."""

    def __init__(
        self,
        *,
        policy: EvidencePolicy,
        trust: Trust,
        clock: Clock,
        fetcher: EvidenceFetcher | None = None,
        endorser: Endorser | None = None,
        lists: ListKeeper | None = None,
        recogniser: Recogniser | None = None,
        expected: ExpectedSource = expected_of,
    ) -> None:
        self._policy = policy
        self._trust = trust
        self._clock = clock
        self._fetcher = fetcher or EvidenceFetcher()
        self._endorser = endorser or NoEndorser()
        self._lists = lists
        self._recogniser = recogniser
        self._expected = expected
        self._latest: dict[EnclaveId, tuple[str, Evidence]] = {}

    async def verify(
        self, enclave: Enclave, release: Release, endpoint: Endpoint, spki_sha256: str
    ) -> Verdict:
        """Fetch with a fresh nonce and judge. `retry`: the guest has no evidence yet.

        Nor is it a verdict on this key that the connection showed another one: a guest changes its
        key while it starts, and whoever asked looks at the key again.
        """
        nonce = os.urandom(NONCE_BYTES)
        try:
            found = await self._observe(enclave, release, endpoint, spki_sha256, nonce, learn=True)
        except NotYetError as error:
            return Verdict(
                attested=None,
                retry=True,
                checks=(Check(code=error.code, passed=False, detail=str(error)),),
            )
        if any(check.code == KEY_CHANGED for check in found.verdict.checks):
            return Verdict(attested=None, retry=True, checks=found.verdict.checks)
        self._latest[enclave.id] = (enclave.launch_uuid, found)
        _tell(enclave, found)
        return found.verdict

    async def evidence(
        self,
        enclave: Enclave,
        release: Release,
        endpoint: Endpoint,
        spki_sha256: str,
        nonce: bytes | None,
    ) -> Evidence:
        """For whoever asks: over their nonce, or the newest over one of ours. See the port."""
        if nonce is not None:
            return await self._observe(enclave, release, endpoint, spki_sha256, nonce)
        launch, found = self._latest.get(enclave.id, (None, None))
        if found is None or launch != enclave.launch_uuid:
            raise NotYetError(f"no evidence of enclave {enclave.id} was seen yet")
        return found

    def forget(self, enclave_id: EnclaveId) -> None:
        """Keep nothing of an enclave that is gone."""
        launch, _ = self._latest.pop(enclave_id, (None, None))
        if self._recogniser is not None and launch is not None:
            self._recogniser.forget_launch(launch)

    async def chip_to_accept(self, name: DeploymentName) -> KnownMachine:
        """See the port."""
        if self._recogniser is None:
            raise ChipNotAcceptedError("nothing is remembered of machines here")
        return await self._recogniser.chip_to_accept(name)

    def compare_anew(self) -> None:
        """See the port."""
        if self._recogniser is not None:
            self._recogniser.compare_anew()

    async def _observe(
        self,
        enclave: Enclave,
        release: Release,
        endpoint: Endpoint,
        spki_sha256: str,
        nonce: bytes,
        *,
        learn: bool = False,
    ) -> Evidence:
        """Fetched and judged; once more where nothing but the key of its connection is wrong.

        A connection keeps the key of its handshake. Over one that was opened in a moment at which
        the guest showed none of its own comes evidence of the key that it took since; whoever gave
        that shows its own to the next connection. Somebody between us and the guest does not.
        """
        asked = (enclave, release, endpoint, spki_sha256, nonce)
        found = await self._observe_once(*asked, learn=learn)
        failed = [check.code for check in found.verdict.checks if not check.passed]
        return await self._observe_once(*asked, learn=learn) if failed == [BINDS_KEY] else found

    async def _observe_once(
        self,
        enclave: Enclave,
        release: Release,
        endpoint: Endpoint,
        spki_sha256: str,
        nonce: bytes,
        *,
        learn: bool,
    ) -> Evidence:
        expected = msgspec.structs.replace(self._expected(release), gpu_mode=enclave.gpu_mode)
        document: bytes | None = None
        try:
            fetched = await self._fetcher.fetch(endpoint, nonce)
            document = fetched.body
            edition = enclave.evidence_edition
            verdict = await self.judge(fetched, expected, spki_sha256, nonce, edition)
            if self._recogniser is not None:
                verdict = await self._recogniser.recognise(enclave, verdict, learn=learn)
        except EvidenceError as error:
            check = Check(code=error.code, passed=False, detail=str(error))
            verdict = Verdict(attested=False, checks=(check,))
        return Evidence(
            document=document,
            verdict=verdict,
            expected=expected,
            nonce=nonce.hex(),
            spki_sha256=spki_sha256,
            observed_at=self._clock.now().wall,
            edition=enclave.evidence_edition,
        )

    async def judge(
        self,
        fetched: Fetched,
        expected: Expected,
        spki_sha256: str,
        nonce: bytes,
        edition: int,
    ) -> Verdict:
        """What an answer that was fetched is worth, by the defaults of this edition.

        Raises EvidenceError for a document that cannot be read, or came over another key, and
        NotYetError while collateral that it needs may still come.
        """
        if fetched.spki_sha256 != spki_sha256:
            raise EvidenceError(
                KEY_CHANGED,
                f"the guest showed the TLS key {fetched.spki_sha256}, not {spki_sha256} as before",
            )
        document, question = await finish_in_thread(_read, fetched, expected, nonce, self._clock)
        if self._lists is not None:
            await self._lists.offer(document)
        with suppress(EvidenceError):  # what cannot be read is refused below, beside other checks
            document = await self._completed(document)
        with suppress(EvidenceError):
            document = await self._with_manifests(document)
        policies = self._policy, self._policy.of_edition(edition)
        verdict = await finish_in_thread(_appraise, document, question, policies, self._trust)
        if verdict.attested and not verdict.simulated:
            await self._endorser.seen(document.cpu, document.report)
        return verdict

    async def _with_manifests(self, document: Document) -> Document:
        """Never with any that the document brings: the vendor's are the only ones looked at."""
        if not document.devices:
            return document
        manifests = await self._endorser.manifests(document.devices)
        return replace(document, collateral=replace(document.collateral, manifests=manifests))

    async def _completed(self, document: Document) -> Document:
        """The document with the collateral that it does not carry, as far as it is known here."""
        carried, report = document.collateral, document.report
        match document.cpu:
            case CpuKind.SNP:
                amd = carried.amd
                if amd is None:
                    amd = await self._endorser.endorsements(report)
                else:
                    amd = replace(amd, held=await self._held(report, amd))
                completed = replace(carried, amd=amd)
            case CpuKind.TDX if not carried.intel:
                completed = replace(carried, intel=await self._endorser.intel(report))
            case CpuKind.TDX:
                held = await self._lists.intel_lists(report) if self._lists else ()
                completed = replace(carried, intel_held=held)
            case _:
                assert_never(document.cpu)
        return replace(document, collateral=completed)

    async def _held(self, report: bytes, amd: Endorsements) -> tuple[bytes, ...]:
        """The agent's lists. Where one came with the evidence none is waited for."""
        try:
            return await self._endorser.revocation_lists(report, amd.ark)
        except NotYetError:
            if not amd.crls:
                raise
            return ()


def _read(
    fetched: Fetched, expected: Expected, nonce: bytes, clock: Clock
) -> tuple[Document, EvidenceQuestion]:
    from agent.attestation.appraisal import EvidenceQuestion, read_document

    question = EvidenceQuestion(
        nonce=nonce,
        spki_sha256=fetched.spki_sha256,
        expected=expected,
        now=clock.now().wall,
    )
    return read_document(fetched.body, nonce), question


def _appraise(
    document: Document,
    question: EvidenceQuestion,
    policies: tuple[EvidencePolicy, EvidencePolicy],
    trust: Trust,
) -> Verdict:
    """By today's policy; where that refuses, by the one that it was admitted under."""
    from agent.attestation.appraisal import appraise

    today, admitted = policies
    verdict = appraise(document, question, today, trust)
    if verdict.attested or admitted is today:
        return verdict
    former = appraise(document, question, admitted, trust)
    if not former.attested:
        return verdict
    stricter = tuple(check for check in verdict.checks if not check.passed)
    return msgspec.structs.replace(former, stricter=stricter)


def _tell(enclave: Enclave, found: Evidence) -> None:
    failed = [check.code for check in found.verdict.checks if not check.passed]
    fields = {"enclave": enclave.id, "deployment": enclave.deployment, "failed": ",".join(failed)}
    if found.verdict.simulated:
        log.warning("evidence judged: SIMULATED — NOT CONFIDENTIAL", extra=fields)
    else:
        log.info("evidence judged", extra=fields)
