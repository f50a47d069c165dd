"""The doctor's line about AMD's revocation list: whether evidence would be refused for want of it.

By what the agent keeps and the operator gives, as it stands: no vendor is asked.
"""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from agent.cli.doctor_line import Line

if TYPE_CHECKING:
    from agent.attestation.collateral_cache.answer import Life, VendorAnswer
    from agent.attestation.collateral_cache.authentic import Roots
    from agent.attestation.collateral_cache.disk_cache import DiskCache
    from agent.attestation.collateral_cache.items import AmdChain, AmdCrl
    from agent.attestation.roots import Trust
    from agent.attestation.snp_tcb import Product
    from agent.config import Config

_WHAT = "snp revocation"
_BRING = "bring a newer list to attestation.collateral.directory"
_REACH = f"let the agent reach attestation.collateral.amd_url, or {_BRING}"


def revocation_line(
    config: Config, product: Product, now: dt.datetime, trust: Trust | None = None
) -> Line | None:
    """None where no list is needed yet. `trust`: whose lists count; None: AMD's."""
    from agent.attestation.roots import Trust

    rule, offline = config.attestation.snp.require_crl, config.attestation.collateral.offline
    if rule is False:
        return None
    lives = list(_kept(config, product, now, trust or Trust()))
    if not lives:
        if not (rule and offline):
            return None
        told = "attestation.snp.require_crl asks for AMD's list; none is here, none is asked for"
        return Line(_WHAT, "error", told, _BRING)
    newest = max(lives, key=_order)
    until = f"{newest.ends_at:%Y-%m-%d %H:%M} UTC"
    if now <= newest.ends_at:
        return Line(_WHAT, "ok", f"the newest list of AMD's that is here is good until {until}")
    told = f"the newest list of AMD's that is here was to be renewed by {until}"
    if offline:
        return Line(_WHAT, "error", f"{told}: evidence of this host would be refused", _BRING)
    return Line(_WHAT, "warn", f"{told}: evidence is refused until AMD gives a newer one", _REACH)


def _order(life: Life) -> tuple[int, dt.datetime]:
    """By which one list is newer than another."""
    edition = life.edition
    return (edition.number, edition.issued) if edition else (0, life.ends_at)


def _kept(config: Config, product: Product, now: dt.datetime, trust: Trust) -> Iterator[Life]:
    from agent.attestation.collateral_cache.authentic import Roots
    from agent.attestation.collateral_cache.disk_cache import DiskCache
    from agent.attestation.collateral_cache.items import AmdChain, AmdCrl
    from agent.attestation.snp_tcb import Signer
    from agent.config import SignerRule

    vlek = config.attestation.snp.signer is SignerRule.VLEK
    signer = Signer.VLEK if vlek else Signer.VCEK
    places = [config.state_dir / "collateral", config.attestation.collateral.directory]
    caches = [DiskCache(place) for place in places if place is not None]
    roots = Roots(amd=trust)
    chains = _authentic(caches, AmdChain(product, signer), None, roots, now)
    for issuers, _ in chains[:1]:
        for _, life in _authentic(caches, AmdCrl(product, signer), issuers, roots, now):
            yield life


def _authentic(
    caches: Sequence[DiskCache],
    item: AmdChain | AmdCrl,
    voucher: VendorAnswer | None,
    roots: Roots,
    now: dt.datetime,
) -> list[tuple[VendorAnswer, Life]]:
    """What is here of it, in any of these, and holds."""
    from agent.attestation.collateral_cache.authentic import authenticate
    from agent.attestation.collateral_cache.items import name_of
    from agent.attestation.evidence import EvidenceError

    found = []
    for cache in caches:
        if (answer := cache.load(name_of(item))) is not None:
            with contextlib.suppress(EvidenceError):
                found.append((answer, authenticate(item, answer, voucher, roots, now)))
    return found
