"""What a PCK certificate says of its platform. Pure.

Source: Intel SGX PCK Certificate and Certificate Revocation List Profile, 1.3.5: an extension that
is a sequence of (name, value). The library reads it; the SGX type, which older certificates lack,
is looked for here, so that its absence has a reason of its own.
"""

from __future__ import annotations

from functools import lru_cache

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from agent.attestation import der
from agent.attestation.evidence import EvidenceError
from agent.attestation.pinned_chain import UNREADABLE
from agent.attestation.tdx.claims import PlatformClaims

_SGX = "1.2.840.113741.1.13.1"
_PPID = f"{_SGX}.1"
_TYPE = f"{_SGX}.5"
_INSTANCE = f"{_SGX}.6"
_CONFIGURATION = f"{_SGX}.7"
_FLAGS = {b"\xff": True, b"\x00": False, None: None}


@lru_cache(maxsize=64)
def read_platform(leaf: x509.Certificate) -> PlatformClaims:
    """Of the leaf of a verified PCK chain. Raises EvidenceError `tdx_pck_sgx_type`,
    `tdx_pck_extension`.
    """
    import dcap_qvl

    _require_type(leaf)
    try:
        pck = dcap_qvl.parse_pck_extension_from_pem(leaf.public_bytes(Encoding.PEM))
        ppid, instance = (pck.get_value(name) for name in (_PPID, _INSTANCE))
        dynamic, cached, smt = (_FLAGS[pck.get_value(f"{_CONFIGURATION}.{n}")] for n in (1, 2, 3))
    except (ValueError, KeyError) as error:
        raise _unreadable(str(error)) from error
    return PlatformClaims(
        fmspc=bytes(pck.fmspc),
        pce_id=bytes(pck.pce_id),
        ppid=bytes(ppid) if ppid else None,
        instance=bytes(instance) if instance else None,
        dynamic_platform=dynamic,
        cached_keys=cached,
        smt=smt,
    )


def _require_type(leaf: x509.Certificate) -> None:
    """Whether the platform protects its memory's integrity by itself is never guessed."""
    try:
        value = leaf.extensions.get_extension_for_oid(x509.ObjectIdentifier(_SGX)).value
        raw = value.value if isinstance(value, x509.UnrecognizedExtension) else b""
        names = _names(raw)
    except x509.ExtensionNotFound as error:
        raise _unreadable("there is none") from error
    except (der.DerError, *UNREADABLE) as error:
        raise _unreadable(str(error)) from error
    if _TYPE not in names:
        raise EvidenceError(
            "tdx_pck_sgx_type",
            f"the PCK certificate does not state its platform's SGX type ({_TYPE})",
        )


def _names(extension: bytes) -> list[str]:
    found: list[str] = []
    pairs = der.Fields(der.sole(extension, der.SEQUENCE, "the SGX extension").content)
    while pairs.left:
        fields = der.Fields(pairs.take(der.SEQUENCE, "a part of the SGX extension").content)
        found.append(der.oid(fields.take(der.OID, "a part's name").content, "a part's name"))
    return found


def _unreadable(why: str) -> EvidenceError:
    return EvidenceError(
        "tdx_pck_extension", f"the PCK certificate's SGX extension cannot be read: {why}"
    )
