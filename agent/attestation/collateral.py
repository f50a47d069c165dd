"""The collateral that a document carries: what vouches for its evidence, by format. Pure.

It is not covered by the evidence, and need not be: each piece is believed for its own signature,
so that a wrong one can only cause a refusal. Formats that are not ours to read are left alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import msgspec

from agent.attestation.strict_json import DocumentPart, canonical_base64, malformed

_FORMAT = "https://tinfoil.sh/collateral/{}/v1"
AMD_VCEK = _FORMAT.format("amd-vcek")
AMD_CRL = _FORMAT.format("amd-crl")
INTEL_PCS = _FORMAT.format("intel-pcs")
CPU = "cpu"  # the subject that names the CPU's evidence

_MAX_CERTIFICATE_BYTES = 8192
_MAX_CRL_BYTES = 64 * 1024
_MAX_BODY_BYTES = 256 * 1024
_MAX_RESPONSES = 16
_PEM = re.compile(
    r"\s*-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]+)-----END CERTIFICATE-----\s*", re.ASCII
)
T = TypeVar("T")


class Entry(DocumentPart, frozen=True, kw_only=True):
    """One piece, as it stands in the document."""

    id: str
    role: Literal["endorsement", "reference-values"]
    format: str
    subjects: tuple[str, ...] = ()
    data: dict[str, Any]


class _Vcek(DocumentPart, frozen=True, kw_only=True):
    vcek_der_base64: str
    cert_chain_pem: str


class _Crl(DocumentPart, frozen=True, kw_only=True):
    crl_der_base64: str


class PcsResponse(DocumentPart, frozen=True, kw_only=True):
    """One answer of Intel's service, as it came: chains stand in its headers."""

    url: str
    headers: dict[str, tuple[str, ...]] = msgspec.field(default_factory=dict)
    body_base64: str

    def body(self) -> bytes:
        """Raises EvidenceError `document_malformed`."""
        return canonical_base64(self.body_base64, "the body of a response", _MAX_BODY_BYTES)


class _Pcs(DocumentPart, frozen=True, kw_only=True):
    responses: tuple[PcsResponse, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Endorsements:
    """What vouches for a SEV-SNP report, in DER: VCEK or VLEK, ASK, ARK, revocation lists.

    `crls`: those that came with it; `held`: those that the agent has. The newest of all counts.
    """

    leaf: bytes
    ask: bytes
    ark: bytes
    crls: tuple[bytes, ...] = ()
    held: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Collateral:
    """What there is for the CPU's evidence, and for the devices': manifests by NVIDIA's id.

    `intel_held`: revocation lists that the agent has.
    """

    amd: Endorsements | None = None
    intel: tuple[PcsResponse, ...] = ()
    intel_held: tuple[bytes, ...] = ()
    manifests: Mapping[str, bytes] = field(default_factory=dict)


def read_collateral(entries: Sequence[Entry]) -> Collateral:
    """Raises EvidenceError `document_malformed`: an entry that has not the form of its format,
    an id given twice, or two entries of one format for the CPU.
    """
    if len({entry.id for entry in entries}) != len(entries) or not all(e.id for e in entries):
        raise malformed("collateral", "its ids are not different from each other, or empty")
    vcek = _sole(entries, AMD_VCEK, _Vcek)
    crl = _sole(entries, AMD_CRL, _Crl)
    pcs = _sole(entries, INTEL_PCS, _Pcs)
    if pcs and len(pcs.responses) > _MAX_RESPONSES:
        raise malformed("collateral intel-pcs", f"it has more than {_MAX_RESPONSES} responses")
    return Collateral(
        amd=_amd(vcek, crl) if vcek else None,
        intel=pcs.responses if pcs else (),
    )


def split_pem(text: str, what: str) -> list[bytes]:
    """DER certificates out of PEM and nothing else. Raises `document_malformed`.

    Lines may end as they like: the vendor's own files differ in that.
    """
    found: list[bytes] = []
    at = 0
    while at < len(text):
        match = _PEM.match(text, at)
        if match is None:
            raise malformed(what, "it is not a row of PEM certificates")
        body = "".join(match[1].split())
        found.append(canonical_base64(body, what, _MAX_CERTIFICATE_BYTES))
        at = match.end()
    return found


def _sole(entries: Sequence[Entry], form: str, kind: type[T]) -> T | None:
    name = form.rsplit("/", 2)[1]
    found: list[T] = []
    for entry in entries:
        if entry.format != form:
            continue
        if entry.role != "endorsement":
            raise malformed(f"collateral {name}", f"its role is {entry.role}")
        try:
            data = msgspec.convert(entry.data, kind)
        except msgspec.ValidationError as error:
            raise malformed(f"collateral {name}", str(error).replace("`", "")) from error
        if CPU in entry.subjects:
            found.append(data)
    if len(found) > 1:
        raise malformed(f"collateral {name}", "there are two for the CPU")
    return found[0] if found else None


def _amd(vcek: _Vcek, crl: _Crl | None) -> Endorsements:
    what = "collateral amd-vcek"
    chain = split_pem(vcek.cert_chain_pem, what)
    if len(chain) != 2:
        raise malformed(what, f"its chain has {len(chain)} certificates, not ASK and ARK")
    crls = (
        (canonical_base64(crl.crl_der_base64, "collateral amd-crl", _MAX_CRL_BYTES),)
        if crl
        else ()
    )
    return Endorsements(
        leaf=canonical_base64(vcek.vcek_der_base64, what, _MAX_CERTIFICATE_BYTES),
        ask=chain[0],
        ark=chain[1],
        crls=crls,
    )
