"""Who signed a quote: root → PCK → quoting enclave → attestation key → TD report.

Invariant: a quote that `verify_signatures` lets through was made by a quoting enclave that the
platform's PCK key certified, and the PCK chain ends in the pinned root. Its TCB is not judged.
"""

from __future__ import annotations

import hashlib
from datetime import datetime

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from agent.attestation.ecdsa import p256_key, signature_holds
from agent.attestation.evidence import EvidenceError
from agent.attestation.pinned_chain import (
    Chain,
    ChainRules,
    ec_key,
    load_chain,
    name_of,
    verify_chain,
)
from agent.attestation.tdx.quote import TdxQuote

_ISSUERS = frozenset({"Intel SGX PCK Platform CA", "Intel SGX PCK Processor CA"})


def verify_signatures(quote: TdxQuote, now: datetime, root_spki_sha256: str) -> Chain:
    """Verify everything under which the quote is signed. Gives the PCK chain, leaf first."""
    chain = _pck_chain(quote.pck_chain, now, root_spki_sha256)
    report = quote.qe_report
    if not _holds(ec_key(chain[0]), quote.qe_report_signature, report.raw):
        raise EvidenceError(
            "tdx_qe_report_signature", "the QE report is not signed by the PCK certificate's key"
        )
    bound = hashlib.sha256(quote.attestation_key + quote.qe_auth_data).digest()
    if report.report_data != bound + bytes(32):
        raise EvidenceError(
            "tdx_attestation_key", "the QE report does not bind the quote's attestation key"
        )
    try:
        key = p256_key(quote.attestation_key)
    except ValueError as error:
        raise EvidenceError(
            "tdx_attestation_key", "the attestation key is no point of P-256"
        ) from error
    if not _holds(key, quote.signature, quote.signed):
        raise EvidenceError(
            "tdx_quote_signature", "header and TD report are not signed by the attestation key"
        )
    return chain


def intel_rules(
    prefix: str, what: str, length: int, leaf_name: str, root_spki_sha256: str
) -> ChainRules:
    """Rules for one of Intel's chains."""
    return ChainRules(
        prefix=prefix,
        what=what,
        root_spki_sha256=root_spki_sha256,
        curve="secp256r1",
        digest="sha256",
        lengths=range(length, length + 1),
        leaf_name=leaf_name,
    )


def _pck_chain(pem: bytes, now: datetime, root_spki_sha256: str) -> Chain:
    rules = intel_rules(
        "tdx_pck_chain", "the PCK chain", 3, "Intel SGX PCK Certificate", root_spki_sha256
    )
    chain = load_chain(pem, rules)
    verify_chain(chain, rules, now)
    if name_of(chain[1]) not in _ISSUERS:
        raise EvidenceError(
            "tdx_pck_chain_invalid", f"the PCK certificate's issuer is {name_of(chain[1])!r}"
        )
    return chain


def _holds(key: ec.EllipticCurvePublicKey, signature: bytes, message: bytes) -> bool:
    return signature_holds(key, signature, message, hashes.SHA256())
