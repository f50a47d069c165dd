"""Intel's revocation lists: authentic, in date, and naming none of the certificates used.

Lists are monotonic: of what came and what the agent has the newest is judged, by number and date.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache

import msgspec
from cryptography import x509

from agent.attestation.evidence import EvidenceError
from agent.attestation.pinned_chain import UNREADABLE, ec_key, key_usage, name_of
from agent.attestation.tdx.collateral import TdxCollateral

MAX_CRL_BYTES = 1 << 20


def check_revocation(
    der: bytes,
    issuer: x509.Certificate,
    certificates: Sequence[x509.Certificate],
    now: datetime,
    field: str,
) -> datetime:
    """Raises unless the list is the issuer's, in date, and names none of them. Gives its end.

    `issuer` must be of a verified chain. Codes: `tdx_<field>_malformed | issuer | signature |
    expired`, and `tdx_revoked`.
    """
    crl = _authentic(der, issuer, field)
    issued, end = crl.last_update_utc, crl.next_update_utc
    if end is None or not issued <= now <= end:
        raise EvidenceError(
            f"tdx_{field}_expired", f"{field} is for {issued} to {end}, and it is {now}"
        )
    for certificate in certificates:
        if crl.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None:
            raise EvidenceError(
                "tdx_revoked",
                f"{field} revokes {name_of(certificate)!r}, serial {certificate.serial_number:x}",
            )
    return end


def newest_lists(collateral: TdxCollateral, held: Sequence[bytes]) -> TdxCollateral:
    """The collateral with each of its lists replaced by a newer one of the same issuer that is
    `held`. Nothing is believed here: whichever is taken is verified with the quote.
    """
    return msgspec.structs.replace(
        collateral,
        pck_crl=_newest(collateral.pck_crl, held),
        root_ca_crl=_newest(collateral.root_ca_crl, held),
    )


def edition_of(crl: x509.CertificateRevocationList) -> tuple[int, datetime]:
    """By which one list is newer than another: its number (0 where it has none) and its date."""
    try:
        number = crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except x509.ExtensionNotFound:
        number = 0
    return number, crl.last_update_utc


def authentic_list(
    der: bytes, issuer: x509.Certificate, field: str
) -> x509.CertificateRevocationList:
    """The issuer's list, of whatever time. Raises as `check_revocation` does."""
    return _authentic(der, issuer, field)


def _newest(own: bytes, held: Sequence[bytes]) -> bytes:
    """One that cannot be read is left where it is, to be refused for that."""
    mine = _outlined(own)
    if mine is None:
        return own
    best, found = mine[1], own
    for other in held:
        theirs = _outlined(other)
        if theirs is not None and theirs[0] == mine[0] and theirs[1] > best:
            best, found = theirs[1], other
    return found


@lru_cache(maxsize=16)
def _outlined(der: bytes) -> tuple[bytes, tuple[int, datetime]] | None:
    """The issuer's name and the edition."""
    if len(der) > MAX_CRL_BYTES:
        return None
    try:
        crl = x509.load_der_x509_crl(der)
        return crl.issuer.public_bytes(), edition_of(crl)
    except UNREADABLE:
        return None


# Keyed by the list's and the issuer's whole encodings, and only what holds is remembered.
@lru_cache(maxsize=16)
def _authentic(der: bytes, issuer: x509.Certificate, field: str) -> x509.CertificateRevocationList:
    if len(der) > MAX_CRL_BYTES:
        raise EvidenceError(f"tdx_{field}_malformed", f"{field}: more than {MAX_CRL_BYTES} bytes")
    try:
        crl = x509.load_der_x509_crl(der)
        canonical = der.endswith(b"\0" + crl.signature)
        # Read now what is read lazily, so that it cannot fail later.
        _ = (crl.last_update_utc, crl.next_update_utc, list(crl))
        named = crl.issuer == issuer.subject
        usage = key_usage(issuer.extensions)
        signed = canonical and named and crl.is_signature_valid(ec_key(issuer))
    except UNREADABLE as error:
        raise EvidenceError(
            f"tdx_{field}_malformed", f"{field} cannot be read as a DER revocation list"
        ) from error
    if not named:
        raise EvidenceError(
            f"tdx_{field}_issuer",
            f"{field} is of {crl.issuer.rfc4514_string()!r}, not of {name_of(issuer)!r}",
        )
    if usage is not None and not usage.crl_sign:
        raise EvidenceError(
            f"tdx_{field}_issuer", f"the key of {name_of(issuer)!r} may not sign revocation lists"
        )
    if not signed:
        raise EvidenceError(f"tdx_{field}_signature", f"{field} is not signed by its issuer")
    return crl
