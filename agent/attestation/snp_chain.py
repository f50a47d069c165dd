"""From a pinned root of AMD's to the key that may sign a report: ARK, ASK, then VCEK or VLEK.

The certificates come with the evidence: one that is not the genuine one can only cause a refusal.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from cryptography.hazmat.primitives.asymmetric import ec, rsa

from agent.attestation.collateral import Endorsements
from agent.attestation.evidence import EvidenceError
from agent.attestation.port import CollateralUsed
from agent.attestation.roots import PINNED, Trust
from agent.attestation.snp_certificate import (
    Certificate,
    ca_key,
    chip_key,
    is_signed_by,
    parse_certificate,
)
from agent.attestation.snp_crl import Crl, authentic_crl, require_current
from agent.attestation.snp_tcb import Product, Signer


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A chain that holds now. `valid_until`: the first end of anything in it. `crl`: the newest
    list that there is; `revocation_checked`: it is current.
    """

    product: Product
    leaf: Certificate
    key: ec.EllipticCurvePublicKey
    root_spki_sha256: str
    valid_until: dt.datetime
    crl: Crl | None
    revocation_checked: bool
    simulated: bool
    collateral: tuple[CollateralUsed, ...]


@dataclass(frozen=True, slots=True)
class _Authority:
    ark: Certificate
    ask: Certificate
    key: rsa.RSAPublicKey


def verify_chain(given: Endorsements, signer: Signer, trust: Trust, now: dt.datetime) -> Chain:
    """Check everything that certificates can say. Raises EvidenceError.

    Codes: `certificate_malformed`, `root_unknown`, `certificate_name`, `certificate_signature`,
    `certificate_not_yet_valid`, `certificate_expired`, `certificate_revoked`, and `crl_…`.
    """
    root, product = _believed(given.ark, trust)
    authority = _authority(given.ark, given.ask)
    ark, ask = authority.ark, authority.ask
    leaf = parse_certificate(given.leaf, signer.name)
    _require_names(product, signer, authority, leaf)
    if not is_signed_by(authority.key, leaf):
        raise EvidenceError(
            "certificate_signature", f"the {leaf.what} is not signed by {ask.common_name}"
        )
    for certificate in (ark, ask, leaf):
        _require_valid(certificate, now)
    crl = _newest_crl(given, ark, now)
    checked = crl is not None and crl.is_current(now)
    ends = [one.not_after for one in (ark, ask, leaf)]
    if crl is not None:
        _require_not_revoked(crl.serials, ask, leaf, signer)
        ends += [crl.next_update] if checked else []
    return Chain(
        product=product,
        leaf=leaf,
        key=chip_key(leaf),
        root_spki_sha256=root,
        valid_until=min(ends),
        crl=crl,
        revocation_checked=checked,
        simulated=root not in PINNED,
        collateral=tuple(_used((ark, ask, leaf), crl)),
    )


def _used(certificates: Sequence[Certificate], crl: Crl | None) -> Iterator[CollateralUsed]:
    for one in certificates:
        yield CollateralUsed(
            kind=f"AMD {one.what}",
            name=one.common_name,
            issued=one.not_before,
            until=one.not_after,
        )
    if crl is not None:
        yield CollateralUsed(
            kind="AMD revocation list",
            name=f"number {crl.number}",
            issued=crl.this_update,
            until=crl.next_update,
        )


def _newest_crl(given: Endorsements, ark: Certificate, now: dt.datetime) -> Crl | None:
    """Of what came and what the agent has. One that came must hold, and be current if it is the
    newest; what the agent has was authentic when it was kept.
    """
    came = [authentic_crl(data, ark) for data in given.crls]
    held = [authentic_crl(data, ark) for data in given.held]
    newest = max((*came, *held), key=lambda crl: crl.order, default=None)
    if newest is not None and newest in came:
        require_current(newest, now)
    return newest


def verify_issuers(
    ask_der: bytes, ark_der: bytes, signer: Signer, trust: Trust, now: dt.datetime
) -> tuple[Product, dt.datetime]:
    """Check an ASK and its ARK alone: whose they are, and until when. Raises EvidenceError."""
    _, product = _believed(ark_der, trust)
    authority = _authority(ark_der, ask_der)
    for certificate, name in _issuer_names(product, signer, authority):
        _require_name(certificate, name)
        _require_valid(certificate, now)
    return product, min(authority.ark.not_after, authority.ask.not_after)


def _believed(ark_der: bytes, trust: Trust) -> tuple[str, Product]:
    """The root's key and product; asked before any work with a key of somebody's choosing."""
    root = _root(ark_der).spki_sha256
    product = PINNED.get(root) or trust.simulated.get(root)
    if product is None:
        raise EvidenceError("root_unknown", f"no root that is believed has the key {root}")
    return root, product


@lru_cache(maxsize=8)
def _root(ark_der: bytes) -> Certificate:
    return parse_certificate(ark_der, "ARK")


@lru_cache(maxsize=8)
def _authority(ark_der: bytes, ask_der: bytes) -> _Authority:
    """Read an ARK and an ASK and check their signatures, which hold or not at any time.

    Whether the root is believed, and their time, is asked anew for every chain.
    """
    ark, ask = _root(ark_der), parse_certificate(ask_der, "ASK")
    root = ca_key(ark, 1)
    for certificate in (ark, ask):
        if certificate.issuer != ark.subject:
            raise EvidenceError(
                "certificate_name", f"the {certificate.what} was not issued by {ark.common_name}"
            )
        if not is_signed_by(root, certificate):
            raise EvidenceError(
                "certificate_signature", f"the {certificate.what} is not signed by the ARK"
            )
    return _Authority(ark, ask, ca_key(ask, 0))


def forget_authorities() -> None:
    """Check the signatures of every ARK and ASK anew (a measure of the whole chain does)."""
    _root.cache_clear()
    _authority.cache_clear()


def _require_names(
    product: Product, signer: Signer, authority: _Authority, leaf: Certificate
) -> None:
    """Each certificate is in its own place: a VCEK's issuer issues no VLEKs, and so on."""
    ask = authority.ask
    for certificate, name in (
        *_issuer_names(product, signer, authority),
        (leaf, f"SEV-{signer.name}"),
    ):
        _require_name(certificate, name)
    if leaf.issuer != ask.subject:
        raise EvidenceError(
            "certificate_name", f"the {leaf.what} was not issued by {ask.common_name}"
        )


def _issuer_names(
    product: Product, signer: Signer, authority: _Authority
) -> tuple[tuple[Certificate, str], ...]:
    intermediate = f"SEV-{product}" if signer is Signer.VCEK else f"SEV-VLEK-{product}"
    return (authority.ark, f"ARK-{product}"), (authority.ask, intermediate)


def _require_name(certificate: Certificate, name: str) -> None:
    if certificate.common_name != name:
        raise EvidenceError(
            "certificate_name",
            f"the {certificate.what} is of {certificate.common_name[:64]!r}, not of {name!r}",
        )


def _require_valid(certificate: Certificate, now: dt.datetime) -> None:
    if now < certificate.not_before:
        raise EvidenceError(
            "certificate_not_yet_valid",
            f"the {certificate.what} is valid from {certificate.not_before:%Y-%m-%d %H:%M} on",
        )
    if now > certificate.not_after:
        raise EvidenceError(
            "certificate_expired",
            f"the {certificate.what} was valid until {certificate.not_after:%Y-%m-%d %H:%M}",
        )


def _require_not_revoked(
    serials: frozenset[int], ask: Certificate, leaf: Certificate, signer: Signer
) -> None:
    """VCEKs all have the serial 0 and are never listed: AMD revokes their ASK."""
    listed = [ask] if ask.serial in serials else []
    if signer is Signer.VLEK and leaf.serial in serials:
        listed.append(leaf)
    for certificate in listed:
        raise EvidenceError(
            "certificate_revoked", f"AMD revoked the {certificate.what} {certificate.common_name}"
        )
