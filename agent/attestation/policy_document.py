"""Whether a document's evidence is fresh and binds the key that the guest shows. Pure."""

from __future__ import annotations

from agent.attestation.document import KEY_BYTES, BoundKeys, Document
from agent.attestation.evidence import EvidenceError
from agent.attestation.port import BINDS_KEY, Check, not_checked


def check_freshness(document: Document, *, allow_unfresh: bool) -> Check:
    """The evidence answers to the nonce that was sent, which report data is to show."""
    if document.report_data is not None:
        detail = "it is held against the nonce that was sent"
        return Check(code="evidence_fresh", passed=True, detail=detail)
    allowed = "; attestation.allow_unfresh lets it pass" if allow_unfresh else ""
    detail = f"a document of version {document.version} answers to no nonce{allowed}"
    return not_checked("evidence_not_fresh", detail, passed=allow_unfresh)


def check_tls_key(keys: BoundKeys, spki_sha256: str) -> Check:
    """The TLS key that was shown (`spki_sha256`) is the one that verified evidence binds."""
    bound = keys.tls_spki_sha256.hex()
    same = bound == spki_sha256
    return Check(
        code=BINDS_KEY,
        passed=same,
        detail=f"TLS key {spki_sha256} is bound"
        if same
        else f"the evidence binds the TLS key {bound}; the connection showed {spki_sha256}",
    )


def check_hpke_key(keys: BoundKeys, offered: bytes) -> Check:
    """An HPKE key that somebody offers is the one that the evidence binds.

    Raises EvidenceError `key_length` for what can be no X25519 key.
    """
    if len(offered) != KEY_BYTES:
        raise EvidenceError("key_length", f"an HPKE key has {KEY_BYTES} bytes, not {len(offered)}")
    same = keys.hpke is not None and keys.hpke == offered
    bound = keys.hpke.hex() if keys.hpke is not None else "none"
    return Check(
        code="hpke_key",
        passed=same,
        detail=f"HPKE key {offered.hex()} is offered, {bound} is bound",
    )
