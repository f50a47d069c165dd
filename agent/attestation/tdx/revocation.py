"""Intel's revocation lists: authentic, in date, and naming none of the certificates used."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache

from cryptography import x509

from agent.attestation.evidence import EvidenceError
from agent.attestation.pinned_chain import UNREADABLE, ec_key, key_usage, name_of

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
