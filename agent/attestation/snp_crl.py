"""AMD's revocation lists, issued by the ARK of a product line.

Source: RFC 5280, 5. Lists are monotonic: of several the newest is judged, by its number and date,
whatever the others say or lack. One that is past its end still revokes what it names, but it is
not current: what was revoked since is not known. A list that names no end has no such time.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from agent.attestation import der
from agent.attestation.evidence import EvidenceError
from agent.attestation.snp_certificate import (
    Certificate,
    SignedBytes,
    ca_key,
    is_signed_by,
    may_sign_crls,
    parse_extensions,
    require_algorithm,
    split_signed,
)

_MAX_BYTES = 64 * 1024
_NUMBER = "2.5.29.20"
_UNDERSTOOD: frozenset[str] = frozenset()  # neither delta lists nor lists of some reasons only


@dataclass(frozen=True, slots=True, kw_only=True)
class Crl:
    """One list. `serials`: what is revoked of the issuer's. `number`: 0 where it has none."""

    signed: SignedBytes
    issuer: bytes
    number: int
    this_update: dt.datetime
    next_update: dt.datetime
    serials: frozenset[int]

    @property
    def order(self) -> tuple[int, dt.datetime]:
        """By which one is newer than another."""
        return self.number, self.this_update

    def is_current(self, now: dt.datetime) -> bool:
        """Whether it is within its own time."""
        return self.this_update <= now <= self.next_update


def verify_crl(data: bytes, ark: Certificate, now: dt.datetime) -> Crl:
    """A list that the ARK signed and that is valid now.

    Raises EvidenceError `crl_malformed`, `crl_issuer`, `crl_signature`, `crl_not_yet_valid` or
    `crl_expired`.
    """
    crl = authentic_crl(data, ark)
    require_current(crl, now)
    return crl


def authentic_crl(data: bytes, ark: Certificate) -> Crl:
    """A list that the ARK signed, of whatever time. Raises EvidenceError `crl_malformed`,
    `crl_issuer`, `crl_signature`.
    """
    try:
        crl = _parse(data)
    except der.DerError as error:
        raise EvidenceError("crl_malformed", f"the revocation list: {error}") from error
    if crl.issuer != ark.subject:
        raise EvidenceError("crl_issuer", f"the revocation list is not one of {ark.common_name}")
    key = ca_key(ark, 1)
    if not may_sign_crls(ark):
        raise EvidenceError("crl_issuer", f"the key of {ark.common_name} may not sign such lists")
    if not is_signed_by(key, crl.signed):
        raise EvidenceError("crl_signature", "the signature of the revocation list does not hold")
    return crl


def require_current(crl: Crl, now: dt.datetime) -> None:
    """Raises EvidenceError `crl_not_yet_valid`, `crl_expired`."""
    if now < crl.this_update:
        raise EvidenceError(
            "crl_not_yet_valid", f"the revocation list is of {crl.this_update:%Y-%m-%d %H:%M}"
        )
    if now > crl.next_update:
        raise EvidenceError(
            "crl_expired",
            f"the revocation list was to be renewed by {crl.next_update:%Y-%m-%d %H:%M}",
        )


def _parse(data: bytes) -> Crl:
    signed = split_signed(data, _MAX_BYTES)
    fields = der.Fields(der.sole(signed.tbs, der.SEQUENCE, "what is signed").content)
    if fields.take(der.INTEGER, "the version").content != b"\x01":
        raise der.DerError("its version is not 2")
    require_algorithm(fields.take(der.SEQUENCE, "the inner algorithm").raw)
    issuer = fields.take(der.SEQUENCE, "the issuer").raw
    this_update = der.moment(fields, "its date")
    next_update = der.moment(fields, "the date of the next list")
    revoked = fields.optional(der.SEQUENCE, "the revoked certificates")
    extensions = fields.optional(0xA0, "the extensions")
    fields.end("what is signed")
    known = parse_extensions(extensions.content, _UNDERSTOOD) if extensions is not None else {}
    return Crl(
        signed=signed,
        issuer=issuer,
        number=_number(known.get(_NUMBER)),
        this_update=this_update,
        next_update=next_update,
        serials=frozenset(_serials(revoked.content) if revoked else ()),
    )


def _number(raw: bytes | None) -> int:
    if raw is None:
        return 0
    return der.integer(der.sole(raw, der.INTEGER, "its number").content, "its number")


def _serials(content: bytes) -> list[int]:
    found: list[int] = []
    entries = der.Fields(content)
    while entries.left:
        fields = der.Fields(entries.take(der.SEQUENCE, "a revoked certificate").content)
        found.append(der.integer(fields.take(der.INTEGER, "a serial").content, "a serial"))
        der.moment(fields, "the date of a revocation")
        if fields.left:
            parse_extensions(fields.take(der.SEQUENCE, "a reason").raw, _UNDERSTOOD)
        fields.end("a revoked certificate")
    return found
