"""Revocation lists in a guest's document, as answers that the cache can authenticate. Pure.

Only lists are taken: Intel's TCB info and quoting enclave identity judge the document that they
came in. Loads what verifies: call it in a thread.
"""

from __future__ import annotations

import base64
import datetime as dt
from typing import TypeAlias, assert_never
from urllib.parse import quote as percent_encoded

from cryptography.hazmat.primitives.serialization import Encoding

from agent.attestation.collateral import Endorsements
from agent.attestation.collateral_cache.answer import VendorAnswer
from agent.attestation.collateral_cache.authentic import Roots, authenticate
from agent.attestation.collateral_cache.items import AmdChain, Item, PckCrl, RootCrl
from agent.attestation.collateral_cache.needs import crl_of, pck_ca
from agent.attestation.document import CpuKind, Document
from agent.attestation.tdx.answers import collateral_of
from agent.attestation.tdx.quote import parse_quote
from agent.attestation.tdx.signatures import verify_signatures

Offer: TypeAlias = tuple[Item, VendorAnswer, VendorAnswer | None]


def offers(document: Document, roots: Roots, now: dt.datetime) -> list[Offer]:
    """Each item, its answer, and what it is authenticated with. Raises EvidenceError for evidence
    or issuers that are none.
    """
    match document.cpu:
        case CpuKind.SNP:
            amd = document.collateral.amd
            return _amd(document.report, amd, roots, now) if amd else []
        case CpuKind.TDX:
            return _intel(document, roots, now) if document.collateral.intel else []
        case _:
            assert_never(document.cpu)


def _amd(report: bytes, given: Endorsements, roots: Roots, now: dt.datetime) -> list[Offer]:
    """None under a root that is not believed."""
    item = crl_of(report, given.ark, roots)
    if item is None or not given.crls:
        return []
    chain = AmdChain(item.product, item.signer)
    issuers = VendorAnswer(body=_pem(given.ask) + _pem(given.ark))
    authenticate(chain, issuers, None, roots, now)
    lists: list[Offer] = [(item, VendorAnswer(body=crl), issuers) for crl in given.crls]
    return [(chain, issuers, None), *lists]


def _intel(document: Document, roots: Roots, now: dt.datetime) -> list[Offer]:
    """The issuers of the PCK list stand in the quote, those of the root's beside the TCB info."""
    chain = verify_signatures(parse_quote(document.report), now, roots.intel_spki_sha256)
    given = collateral_of(document.collateral.intel)
    issuers = b"".join(one.public_bytes(Encoding.PEM) for one in chain[1:]).decode()
    pck = VendorAnswer(body=given.pck_crl, chain=percent_encoded(issuers))
    signers = percent_encoded(given.tcb_info_issuer_chain)
    root = VendorAnswer(body=given.root_ca_crl, chain=signers)
    return [(PckCrl(pck_ca(chain)), pck, None), (RootCrl(), root, None)]


def _pem(der: bytes) -> bytes:
    text = base64.b64encode(der).decode()
    lines = "".join(f"{text[at : at + 64]}\n" for at in range(0, len(text), 64))
    return f"-----BEGIN CERTIFICATE-----\n{lines}-----END CERTIFICATE-----\n".encode()
