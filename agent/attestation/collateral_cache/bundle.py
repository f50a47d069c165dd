"""Answers in the form in which documents carry collateral. Pure.

The URLs in it are the vendors' own, wherever we asked: a guest tells the answers apart by them.
"""

from __future__ import annotations

import base64
import datetime as dt
from collections.abc import Mapping

import msgspec

from agent.attestation.collateral import AMD_CRL, AMD_VCEK, CPU, INTEL_PCS, Entry, PcsResponse
from agent.attestation.collateral_cache.answer import AuthenticatedAnswer, VendorAnswer
from agent.attestation.collateral_cache.items import (
    Item,
    Service,
    chain_header_of,
    path_of,
    service_of,
)
from agent.attestation.document import PREDICATE
from agent.config import CollateralConfig

FORMAT = f"{PREDICATE}attestation-collaterals/v2"
_OWN = CollateralConfig()
_URLS = {Service.INTEL: _OWN.intel_url, Service.INTEL_ROOT: _OWN.intel_root_crl_url}


class Collaterals(msgspec.Struct, frozen=True, kw_only=True):
    """The whole answer to a guest."""

    format: str
    expires_at: dt.datetime
    collateral: tuple[Entry, ...]


def pcs_response(item: Item, answer: VendorAnswer) -> PcsResponse:
    """One answer of Intel's, as documents carry it."""
    header = chain_header_of(item)
    return PcsResponse(
        url=_URLS[service_of(item)] + path_of(item),
        headers={header: (answer.chain,)} if header else {},
        body_base64=_text(answer.body),
    )


def snp_collaterals(
    vcek: AuthenticatedAnswer, chain: AuthenticatedAnswer, crl: AuthenticatedAnswer | None
) -> Collaterals:
    """What a SEV-SNP guest needs for its document."""
    pem = chain.answer.body.decode("ascii")
    data = {"vcek_der_base64": _text(vcek.answer.body), "cert_chain_pem": pem}
    entries = [_entry("amd-vcek", AMD_VCEK, data)]
    if crl is not None:
        entries.append(_entry("amd-crl", AMD_CRL, {"crl_der_base64": _text(crl.answer.body)}))
    return _collaterals(entries, [one for one in (vcek, chain, crl) if one])


def tdx_collaterals(parts: tuple[tuple[Item, AuthenticatedAnswer], ...]) -> Collaterals:
    """What a TDX guest needs for its document."""
    responses = [msgspec.to_builtins(pcs_response(item, kept.answer)) for item, kept in parts]
    entry = _entry("intel-pcs", INTEL_PCS, {"responses": responses})
    return _collaterals([entry], [kept for _, kept in parts])


def _collaterals(entries: list[Entry], kept: list[AuthenticatedAnswer]) -> Collaterals:
    return Collaterals(
        format=FORMAT,
        expires_at=min(one.life.refresh_at or one.life.ends_at for one in kept),
        collateral=tuple(entries),
    )


def _entry(name: str, form: str, data: Mapping[str, object]) -> Entry:
    return Entry(id=name, role="endorsement", format=form, subjects=(CPU,), data=dict(data))


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
