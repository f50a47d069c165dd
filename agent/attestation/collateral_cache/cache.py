"""The cache itself: an item from memory, the operator's directory, the disk, or its vendor.

Invariants: what is given out was authenticated and is within its time; one item is asked for by
one request at a time, however many want it; nothing is replaced by an older issue of itself,
wherever that comes from; a vendor that refused is left alone until the wait is over, whoever
wants what. Waits run on CLOCK_BOOTTIME and are not kept over a restart.
"""

from __future__ import annotations

import datetime as dt
import functools
import logging
import random
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.attestation.collateral_cache.answer import AuthenticatedAnswer, Life, VendorAnswer
from agent.attestation.collateral_cache.disk_cache import DiskCache
from agent.attestation.collateral_cache.items import (
    Item,
    Service,
    chain_header_of,
    name_of,
    path_of,
    service_of,
    voucher_of,
)
from agent.attestation.collateral_cache.pacing import asked_s, backoff_s
from agent.attestation.collateral_cache.vendor import VendorError, Vendors
from agent.attestation.evidence import EvidenceError
from agent.attestation.port import NotYetError
from agent.errors import describe
from agent.host.clock import Clock
from agent.host.files import StorageError
from agent.host.singleflight import Singleflight
from agent.host.threads import finish_in_thread
from agent.model.clock import Instant

if TYPE_CHECKING:
    from agent.attestation.collateral_cache.authentic import Roots

log = logging.getLogger(__name__)

_MAX_IN_MEMORY = 256
_MAX_REFUSALS = 256


class CollateralNotYetError(NotYetError):
    """The vendor does not answer just now. `wait_s`: not to be asked again before."""

    def __init__(self, text: str, wait_s: float) -> None:
        super().__init__(text)
        self.wait_s = wait_s


@dataclass(frozen=True, slots=True)
class _Refusal:
    """Why a service, or one item, is left alone, and until when. `absent`: there is none."""

    failures: int
    until: Instant
    why: str
    absent: bool = False


class CollateralCache:
    """`vendors` None: offline. `directory`: the operator's, read before anything else."""

    def __init__(
        self,
        *,
        disk_cache: DiskCache,
        vendors: Vendors | None,
        roots: Callable[[], Roots],
        clock: Clock,
        directory: DiskCache | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._disk_cache = disk_cache
        self._vendors = vendors
        self._roots = roots
        self._clock = clock
        self._directory = directory
        self._chance = chance
        self._kept: OrderedDict[Item, AuthenticatedAnswer] = OrderedDict()
        self._busy: dict[Service, _Refusal] = {}
        self._refusals: OrderedDict[Item, _Refusal] = OrderedDict()
        self._singleflight = Singleflight()

    async def get(self, item: Item) -> AuthenticatedAnswer | None:
        """The item, or None: neither we nor the vendor have it.

        Raises CollateralNotYetError while its vendor is not to be asked.
        """
        if (kept := self._valid(item)) is not None:
            return kept
        await self._singleflight.run(name_of(item), functools.partial(self._bring, item))
        return self._valid(item)

    async def held(self, item: Item) -> VendorAnswer | None:
        """The newest issue of it that was ever kept here, be it over; no vendor is asked."""
        await self._singleflight.run(f"held {name_of(item)}", functools.partial(self._load, item))
        kept = self._kept.get(item)
        return kept.answer if kept else None

    async def offer(self, item: Item, answer: VendorAnswer, voucher: VendorAnswer | None) -> None:
        """What came from elsewhere: kept if it holds and no newer issue is here."""
        before = await self.held(item)
        if before == answer or not await self._take(item, answer, voucher):
            return
        if self._kept[item].answer is answer:
            await self._store(item, answer)

    async def refresh_due(self) -> None:
        """Have what will end replaced; what cannot be had now stays until its end."""
        now = self._clock.now().wall
        for item, kept in list(self._kept.items()):
            if kept.life.refresh_at is None or now < kept.life.refresh_at:
                continue
            try:
                await self._singleflight.run(name_of(item), functools.partial(self._renew, item))
            except CollateralNotYetError as error:
                log.info("collateral is not renewed yet", extra=_fields(item, error))

    async def close(self) -> None:
        """End the connections to the vendors."""
        if self._vendors is not None:
            await self._vendors.close()

    def _valid(self, item: Item) -> AuthenticatedAnswer | None:
        kept = self._kept.get(item)
        if kept is None or self._clock.now().wall > kept.life.ends_at:
            return None
        self._kept.move_to_end(item)
        return kept

    async def _bring(self, item: Item) -> None:
        if self._valid(item) is not None:
            return
        voucher = await self._voucher(item)
        await self._read(item, voucher)
        if self._valid(item) is None:
            await self._ask(item, voucher)

    async def _load(self, item: Item) -> None:
        """From here alone."""
        if item in self._kept:
            return
        wanted = voucher_of(item)
        voucher = await self.held(wanted) if wanted is not None else None
        await self._read(item, voucher)

    async def _read(self, item: Item, voucher: VendorAnswer | None) -> None:
        """The operator's, unless the agent has a newer issue of it."""
        for disk_cache in (self._directory, self._disk_cache):
            if disk_cache is None:
                continue
            answer = await finish_in_thread(disk_cache.load, name_of(item))
            if answer is None or not await self._take(item, answer, voucher):
                continue
            if self._kept[item].life.edition is None:
                return

    async def _renew(self, item: Item) -> None:
        await self._ask(item, await self._voucher(item))

    async def _voucher(self, item: Item) -> VendorAnswer | None:
        wanted = voucher_of(item)
        kept = await self.get(wanted) if wanted is not None else None
        return kept.answer if kept else None

    async def _ask(self, item: Item, voucher: VendorAnswer | None) -> None:
        if self._vendors is None or (voucher is None and voucher_of(item) is not None):
            return
        service = service_of(item)
        for refusal in (self._busy.get(service), self._refusals.get(item)):
            if refusal is not None and self._stands(refusal):
                return
        try:
            answer = await self._vendors.ask(service, path_of(item), chain_header_of(item))
        except VendorError as error:
            self._refused(item, error)
            return
        if not await self._take(item, answer, voucher) or self._valid(item) is None:
            text = f"{name_of(item)}: the vendor's answer does not hold"
            self._refused(item, VendorError(text))
            return
        self._refusals.pop(item, None)
        self._busy.pop(service, None)
        if self._kept[item].answer is answer:
            await self._store(item, answer)

    async def _store(self, item: Item, answer: VendorAnswer) -> None:
        try:
            await finish_in_thread(self._disk_cache.store, name_of(item), answer)
        except StorageError as error:
            log.warning("collateral is not kept on disk", extra=_fields(item, error))

    async def _take(self, item: Item, answer: VendorAnswer, voucher: VendorAnswer | None) -> bool:
        """Whether it holds; it is kept in memory then, unless a newer issue of it is."""
        now = self._clock.now().wall
        try:
            life = await finish_in_thread(_authenticate, item, answer, voucher, self._roots, now)
        except EvidenceError as error:
            log.warning("collateral does not hold", extra=_fields(item, error))
            return False
        kept = self._kept.get(item)
        if kept is not None and _is_before(life, kept.life):
            log.warning("collateral is older than what is kept", extra={"item": name_of(item)})
            return True
        self._kept[item] = AuthenticatedAnswer(answer, life)
        self._kept.move_to_end(item)
        while len(self._kept) > _MAX_IN_MEMORY:
            self._kept.popitem(last=False)
        return True

    def _stands(self, refusal: _Refusal) -> bool:
        """Whether nothing is to be asked, because it is known to be absent.

        Raises CollateralNotYetError while the answer may come later.
        """
        now = self._clock.now()
        if now.reached(refusal.until):
            return False
        if refusal.absent:
            return True
        wait_s = -(now.since(refusal.until) or 0.0)
        raise CollateralNotYetError(refusal.why, wait_s)

    def _refused(self, item: Item, error: VendorError) -> None:
        """Note how long to leave the vendor alone. Raises CollateralNotYetError unless absent.

        One that is busy is left alone altogether; otherwise the item is.
        """
        service = service_of(item)
        earlier = self._busy.get(service) if error.busy else self._refusals.get(item)
        failures = earlier.failures + 1 if earlier else 1
        now = self._clock.now()
        wait_s = asked_s(error.retry_after, now.wall)
        if wait_s is None:
            wait_s = backoff_s(failures, self._chance())
        why = f"{describe(error)}; asked again in {wait_s:.0f} s"
        refusal = _Refusal(failures, now.plus(wait_s), why, error.absent)
        if error.busy:
            self._busy[service] = refusal
        else:
            self._refusals[item] = refusal
            self._refusals.move_to_end(item)
            if len(self._refusals) > _MAX_REFUSALS:
                self._refusals.popitem(last=False)
        log.warning(
            "no collateral from the vendor", extra={"wait_s": wait_s} | _fields(item, error)
        )
        if not error.absent:
            raise CollateralNotYetError(why, wait_s) from error


def _is_before(one: Life, other: Life) -> bool:
    if one.edition is None or other.edition is None:
        return False
    return one.edition.is_before(other.edition)


def _authenticate(
    item: Item,
    answer: VendorAnswer,
    voucher: VendorAnswer | None,
    roots: Callable[[], Roots],
    now: dt.datetime,
) -> Life:
    """In a thread, with what verifies imported there."""
    from agent.attestation.collateral_cache.authentic import authenticate

    return authenticate(item, answer, voucher, roots(), now)


def _fields(item: Item, error: Exception) -> dict[str, object]:
    return {"item": name_of(item), "error": describe(error)}
