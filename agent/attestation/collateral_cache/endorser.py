"""What stands for a guest's evidence, out of the cache; implements `verifier.Endorser` and
`verifier.ListKeeper`.

Revocation lists are monotonic: the newest that ever came, from a vendor or in a document, is kept
and given, even when it is over. Nothing else of a document is kept.

The evidence of a guest that was believed is remembered, so that after a restart what stands for
this host's chip and TCB is at hand before anything asks for it.
"""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.attestation.collateral import Endorsements, PcsResponse
from agent.attestation.collateral_cache.answer import AuthenticatedAnswer, VendorAnswer
from agent.attestation.collateral_cache.bundle import pcs_response
from agent.attestation.collateral_cache.cache import CollateralCache
from agent.attestation.collateral_cache.disk_cache import DiskCache
from agent.attestation.collateral_cache.items import (
    AmdChain,
    AmdCrl,
    Item,
    PckCrl,
    Rim,
    RootCrl,
    Vcek,
)
from agent.attestation.collateral_cache.manifests import manifest_bytes
from agent.attestation.document import CpuKind, DeviceItem, Document
from agent.attestation.evidence import EvidenceError
from agent.attestation.manifest_name import ManifestName
from agent.attestation.port import NotYetError
from agent.attestation.snp_tcb import Signer
from agent.errors import describe
from agent.host.clock import Clock
from agent.host.files import StorageError
from agent.host.threads import finish_in_thread
from agent.host.wake import Wake

if TYPE_CHECKING:
    from agent.attestation.collateral_cache.authentic import Roots
    from agent.attestation.collateral_cache.offered import Offer

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SnpParts:
    """What stands for a report. `crl` None: there is no current one of `listed`."""

    vcek: AuthenticatedAnswer
    chain: AuthenticatedAnswer
    crl: AuthenticatedAnswer | None
    listed: AmdCrl


TdxParts = tuple[tuple[Item, AuthenticatedAnswer], ...]


class CachedEndorser:
    """`require_crl`, `require_rim`: without AMD's current list, without NVIDIA's reference
    manifests an answer is not complete, and is waited for. `early`: which of Intel's sets is kept.

    `changed` rings when this host's own chip or TCB is seen to be another one.
    """

    def __init__(
        self,
        cache: CollateralCache,
        disk_cache: DiskCache,
        roots: Callable[[], Roots],
        clock: Clock,
        *,
        require_crl: bool | None = None,
        require_rim: bool = False,
        early: bool = False,
    ) -> None:
        self._cache = cache
        self._disk_cache = disk_cache
        self._roots = roots
        self._clock = clock
        self._require_crl = bool(require_crl)
        self._early = early
        self._require_rim = require_rim
        self._latest: dict[CpuKind, tuple[bytes, bytes]] = {}
        self.changed = Wake()

    async def endorsements(self, report: bytes) -> Endorsements | None:
        """See the protocol. Raises NotYetError while the vendor is not to be asked."""
        parts = await self.snp_parts(report)
        if parts is None:
            return None
        held = () if parts.crl else await self._held(parts.listed)
        return await finish_in_thread(_endorsements, parts, held)

    async def revocation_lists(self, report: bytes, ark: bytes) -> tuple[bytes, ...]:
        """See the protocol. Raises NotYetError where a list is required and may come later."""
        item = await finish_in_thread(_crl_of, report, ark, self._roots)
        if item is None:
            return ()
        crl = await self._crl(item)
        return (crl.answer.body,) if crl else await self._held(item)

    async def intel_lists(self, quote: bytes) -> tuple[bytes, ...]:
        """See the protocol. Raises EvidenceError for no genuine quote."""
        now = self._clock.now().wall
        items = await finish_in_thread(_tdx_needs, quote, self._roots, now, self._early)
        lists = [item for item in items if isinstance(item, PckCrl | RootCrl)]
        return tuple([body for item in lists for body in await self._held(item)])

    async def offer(self, document: Document) -> None:
        """See the protocol. What does not hold is not kept, and is no failure here."""
        now = self._clock.now().wall
        try:
            offers = await finish_in_thread(_offers, document, self._roots, now)
        except EvidenceError:
            return
        for item, answer, voucher in offers:
            await self._cache.offer(item, answer, voucher)

    async def intel(self, quote: bytes) -> tuple[PcsResponse, ...]:
        """See the protocol. Raises NotYetError; EvidenceError for no genuine quote."""
        parts = await self.tdx_parts(quote)
        return tuple(pcs_response(item, kept.answer) for item, kept in parts)

    async def manifests(self, devices: Sequence[DeviceItem]) -> Mapping[str, bytes]:
        """See the protocol. Raises NotYetError where they are required and may come later;
        EvidenceError for devices that are not genuine.
        """
        now = self._clock.now().wall
        found: dict[str, bytes] = {}
        for name in await finish_in_thread(_gpu_needs, devices, self._roots, now):
            try:
                kept = await self._cache.get(Rim(name))
            except NotYetError:
                if self._require_rim:
                    raise
                continue
            if kept is not None:
                found[name.id] = manifest_bytes(kept.answer.body)
        return found

    async def snp_parts(self, report: bytes) -> SnpParts | None:
        """Raises NotYetError; EvidenceError for what is no report."""
        signer, vceks = await finish_in_thread(_snp_needs, report)
        for vcek in vceks:
            leaf = await self._cache.get(vcek)
            chain = await self._cache.get(AmdChain(vcek.product, signer))
            if leaf is not None and chain is not None:
                listed = AmdCrl(vcek.product, signer)
                return SnpParts(leaf, chain, await self._crl(listed), listed)
        return None

    async def tdx_parts(self, quote: bytes) -> TdxParts:
        """All of it, or nothing. Raises NotYetError; EvidenceError for no genuine quote."""
        now = self._clock.now().wall
        items = await finish_in_thread(_tdx_needs, quote, self._roots, now, self._early)
        found = [(item, await self._cache.get(item)) for item in items]
        parts = tuple((item, kept) for item, kept in found if kept is not None)
        return parts if len(parts) == len(found) else ()

    async def seen(self, kind: CpuKind, evidence: bytes) -> None:
        """Evidence of a guest of this host that was believed: remember chip and TCB."""
        try:
            mark = _mark(kind, evidence)
        except EvidenceError:
            return
        if self._latest.get(kind, (b"", b""))[0] == mark:
            return
        self._latest[kind] = (mark, evidence)
        try:
            await finish_in_thread(
                self._disk_cache.store, f"latest-{kind}", VendorAnswer(body=evidence)
            )
        except StorageError as error:
            log.warning("the latest evidence is not kept", extra={"error": describe(error)})
        self.changed.notify()

    async def recall(self) -> None:
        """Take up what an earlier life of the agent had seen."""
        for kind in CpuKind:
            answer = await finish_in_thread(self._disk_cache.load, f"latest-{kind}")
            if answer is not None and kind not in self._latest:
                try:
                    self._latest[kind] = (_mark(kind, answer.body), answer.body)
                except EvidenceError:
                    log.warning("the latest evidence on disk is damaged", extra={"kind": kind})

    async def prefetch(self) -> None:
        """Have at hand what stands for this host; what cannot be had now is tried again later."""
        for kind, (_, evidence) in list(self._latest.items()):
            try:
                if kind is CpuKind.SNP:
                    await self.snp_parts(evidence)
                else:
                    await self.tdx_parts(evidence)
            except (NotYetError, EvidenceError) as error:
                log.info("collateral of this host", extra={"error": describe(error)})

    async def _held(self, item: Item) -> tuple[bytes, ...]:
        answer = await self._cache.held(item)
        return (answer.body,) if answer else ()

    async def _crl(self, item: AmdCrl) -> AuthenticatedAnswer | None:
        try:
            return await self._cache.get(item)
        except NotYetError:
            if self._require_crl:
                raise
            return None


def _mark(kind: CpuKind, evidence: bytes) -> bytes:
    """What stays the same from one guest of this host to the next: chip and TCB."""
    if kind is CpuKind.SNP:
        from agent.attestation.snp_report import parse_report

        report = parse_report(evidence)
        return report.reported_tcb + report.chip_id
    from agent.attestation.tdx.quote import parse_quote

    return parse_quote(evidence).pck_chain


def _endorsements(parts: SnpParts, held: tuple[bytes, ...]) -> Endorsements:
    from agent.attestation.collateral_cache.authentic import amd_issuers

    ask, ark = amd_issuers(parts.chain.answer)
    if parts.crl is not None:
        held = (parts.crl.answer.body,)
    return Endorsements(leaf=parts.vcek.answer.body, ask=ask, ark=ark, held=held)


def _snp_needs(report: bytes) -> tuple[Signer, tuple[Vcek, ...]]:
    from agent.attestation.collateral_cache.needs import snp_needs

    return snp_needs(report)


def _crl_of(report: bytes, ark: bytes, roots: Callable[[], Roots]) -> AmdCrl | None:
    from agent.attestation.collateral_cache.needs import crl_of

    return crl_of(report, ark, roots())


def _tdx_needs(
    quote: bytes, roots: Callable[[], Roots], now: dt.datetime, early: bool
) -> tuple[Item, ...]:
    from agent.attestation.collateral_cache.needs import tdx_needs

    return tdx_needs(quote, roots(), now, early=early)


def _offers(document: Document, roots: Callable[[], Roots], now: dt.datetime) -> list[Offer]:
    from agent.attestation.collateral_cache.offered import offers

    return offers(document, roots(), now)


def _gpu_needs(
    devices: Sequence[DeviceItem], roots: Callable[[], Roots], now: dt.datetime
) -> tuple[ManifestName, ...]:
    from agent.attestation.collateral_cache.needs import gpu_needs

    return gpu_needs(devices, roots(), now)
