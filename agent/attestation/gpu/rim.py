"""NVIDIA's reference manifests (RIM): golden values of a driver or a VBIOS. Pure.

Source: ISO/IEC 19770-2 (SWID tags); TCG Reference Integrity Manifest; the manifests that NVIDIA
publishes. Invariant: a manifest that exists was signed under the pinned root, by certificates that
were all valid at one moment; whether they still are is told, for the policy to judge.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from agent.attestation.evidence import EvidenceError
from agent.attestation.gpu.canonical_xml import Element
from agent.attestation.gpu.signed_xml import read_signed
from agent.attestation.gpu.spdm import DIGEST_BYTES
from agent.attestation.manifest_name import ManifestName
from agent.attestation.pinned_chain import Chain, ChainRules, earliest_end, verify_chain

_SWID = "http://standards.iso.org/iso/19770/-2/2015/schema.xsd"
_SHA384 = "http://www.w3.org/2001/04/xmlenc#sha384"
_MAX_ALTERNATIVES = 64
_NUMBER = re.compile(r"0|[1-9][0-9]{0,2}")
_DIGEST = re.compile(rf"[0-9a-fA-F]{{{2 * DIGEST_BYTES}}}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceManifest:
    """`golden`: what each measurement may be, by its index (from 0). `valid_until`: the first end
    of a certificate that it was signed under; `valid_from`: the last begin of one.
    """

    product: str
    version: str
    golden: Mapping[int, frozenset[bytes]]
    valid_from: datetime
    valid_until: datetime

    def is_of(self, name: ManifestName) -> bool:
        """Whether it says that it is of this product and version."""
        product = self.product.upper().replace("_", "")
        wanted = name.product.upper().replace("_", "")
        return (product, self.version.upper()) == (wanted, name.version.upper())


def read_manifest(data: bytes, root_spki_sha256: str, now: datetime) -> ReferenceManifest:
    """Raises EvidenceError `gpu_rim_malformed | _signature | _incomplete | _root | _invalid`, and
    `gpu_rim_expired` for certificates that are not valid yet, or never were at one time.
    """
    manifest, chain, rules = _read(data, root_spki_sha256)
    verify_chain(chain, rules, min(now, manifest.valid_until))
    return manifest


# Keyed by the whole document and the root. What depends on the moment is judged every time.
@lru_cache(maxsize=64)
def _read(data: bytes, root: str) -> tuple[ReferenceManifest, Chain, ChainRules]:
    rules = ChainRules(
        prefix="gpu_rim",
        what="the reference manifest",
        root_spki_sha256=root,
        curve="secp384r1",
        digest="sha384",
        lengths=range(2, 7),
    )
    signed = read_signed(data, rules)
    tag = signed.content
    if (tag.space, tag.local) != (_SWID, "SoftwareIdentity"):
        raise _malformed(f"it is a {tag.local}, no SoftwareIdentity")
    meta = _sole(tag, "Meta")
    manifest = ReferenceManifest(
        product=_attribute(meta, "product"),
        version=_attribute(meta, "colloquialVersion"),
        golden=_golden(_sole(tag, "Payload")),
        valid_from=max(one.not_valid_before_utc for one in signed.chain),
        valid_until=earliest_end(signed.chain),
    )
    return manifest, signed.chain, rules


def _golden(payload: Element) -> dict[int, frozenset[bytes]]:
    """Of the active measurements; there is one at least, or nothing would be compared."""
    seen: set[int] = set()
    golden: dict[int, frozenset[bytes]] = {}
    for resource in payload.elements:
        if (resource.space, resource.local) != (_SWID, "Resource"):
            raise _malformed(f"its payload has a {resource.local}")
        if resource.get("type") != "Measurement":
            continue
        index = _number(resource, "index")
        if index in seen:
            raise _malformed(f"index {index} is there twice")
        seen.add(index)
        values = _values(resource, index)
        if _is_active(resource, index):
            golden[index] = values
    if not golden:
        raise _malformed("it has no active measurement")
    return golden


def _is_active(resource: Element, index: int) -> bool:
    word = resource.get("active")
    if word not in {"True", "False"}:
        raise _malformed(f"measurement {index} is active={word!r}")
    return word == "True"


def _values(resource: Element, index: int) -> frozenset[bytes]:
    """Exactly as many digests as it says that there are."""
    count = _number(resource, "alternatives")
    found = {one.local: one.value for one in resource.attributes if one.space == _SHA384}
    names = {f"Hash{number}" for number in range(count)}
    whole = 0 < count <= _MAX_ALTERNATIVES and found.keys() == names
    if not whole or _number(resource, "size") != DIGEST_BYTES:
        raise _malformed(f"measurement {index} has not the {count} digests that it says")
    for name, value in found.items():
        if _DIGEST.fullmatch(value) is None:
            raise _malformed(f"{name} of measurement {index} is no SHA-384 digest")
    return frozenset(map(bytes.fromhex, found.values()))


def _number(element: Element, name: str) -> int:
    text = _attribute(element, name)
    if _NUMBER.fullmatch(text) is None:
        raise _malformed(f"{name} of a measurement is {text[:40]!r}")
    return int(text)


def _attribute(element: Element, name: str) -> str:
    value = element.get(name)
    if not value:
        raise _malformed(f"a {element.local} has no {name}")
    return value


def _sole(tag: Element, local: str) -> Element:
    found = [one for one in tag.elements if (one.space, one.local) == (_SWID, local)]
    if len(found) != 1:
        raise _malformed(f"it has {len(found)} of {local}, not one")
    return found[0]


def _malformed(detail: str) -> EvidenceError:
    return EvidenceError("gpu_rim_malformed", f"the reference manifest: {detail}"[:400])
