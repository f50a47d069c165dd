"""An enveloped XML signature, in the one form in which NVIDIA signs its reference manifests. Pure.

Source: W3C XML Signature 1.1; RFC 9231 (ECDSA over P-384 with SHA-384).

Invariant: what is given out was read again out of the very bytes that were signed, never out of
the document that came: nothing can be read that the signature does not cover, wherever it stands.
There is one signature, right under the document's element, over the whole document but itself. Any
other form of it is refused, and nothing in it decides how it is verified.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives import hashes

from agent.attestation.ecdsa import signature_holds
from agent.attestation.evidence import EvidenceError
from agent.attestation.gpu.canonical_xml import Element, canonical, read_xml
from agent.attestation.pinned_chain import Chain, ChainRules, ec_key, load_chain

_DS = "http://www.w3.org/2000/09/xmldsig#"
# Of what is read here, both write the same bytes.
_CANONICAL = frozenset(
    {"http://www.w3.org/2006/12/xml-c14n11", "http://www.w3.org/TR/2001/REC-xml-c14n-20010315"}
)
_ENVELOPED = frozenset({f"{_DS}enveloped-signature"})
_ECDSA_SHA384 = frozenset({"http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384"})
_SHA384 = frozenset({"http://www.w3.org/2001/04/xmldsig-more#sha384"})
_MAX_CERTIFICATES = 8


@dataclass(frozen=True, slots=True)
class SignedXml:
    """`content`: what was signed. `chain`: whose signature it is; who that is, is not judged."""

    content: Element
    chain: Chain


def read_signed(data: bytes, rules: ChainRules) -> SignedXml:
    """The signed content, under the key of the chain's first certificate.

    The chain is not verified: that depends on the moment. Raises EvidenceError
    `<prefix>_malformed`, `<prefix>_signature`, and whatever `load_chain` refuses.
    """
    reader, malformed = _Reader(rules), f"{rules.prefix}_malformed"
    root = read_xml(data, malformed)
    signature = reader.signature_of(root)
    info, value, key_info = reader.children(signature, "SignedInfo", "SignatureValue", "KeyInfo")
    chain = load_chain(reader.certificates(key_info), rules)
    signed = canonical(info)
    if not signature_holds(ec_key(chain[0]), reader.binary(value), signed, hashes.SHA384()):
        raise reader.refusal("signature", "it is not signed by its first certificate's key")
    content = canonical(root, without=signature)
    if reader.digest(read_xml(signed, malformed)) != hashlib.sha384(content).digest():
        raise reader.refusal("signature", "its content is not what was signed")
    return SignedXml(read_xml(content, malformed), chain)


@dataclass(frozen=True, slots=True)
class _Reader:
    """Cuts a signature to the letter; `rules` name the refusals."""

    rules: ChainRules

    def signature_of(self, root: Element) -> Element:
        found = [one for one in root.walk() if (one.space, one.local) == (_DS, "Signature")]
        if len(found) != 1 or not any(one is found[0] for one in root.elements):
            what = f"{len(found)} signatures, and not one right under the document's element"
            raise self.refusal("signature", what)
        self.attributes(found[0], ())
        return found[0]

    def digest(self, info: Element) -> bytes:
        """The digest that was signed, of the whole document but the signature."""
        self.attributes(info, ())
        canonical_by, signed_by, reference = self.children(
            info, "CanonicalizationMethod", "SignatureMethod", "Reference"
        )
        self.algorithm(canonical_by, _CANONICAL)
        self.algorithm(signed_by, _ECDSA_SHA384)
        self.attributes(reference, ("URI",))
        if reference.get("URI") != "":
            raise self.refusal("signature", f"it covers {reference.get('URI')!r}, not all of it")
        transforms, method, value = self.children(
            reference, "Transforms", "DigestMethod", "DigestValue"
        )
        self.attributes(transforms, ())
        enveloped, written = self.children(transforms, "Transform", "Transform")
        self.algorithm(enveloped, _ENVELOPED)
        self.algorithm(written, _CANONICAL)
        self.algorithm(method, _SHA384)
        return self.binary(value)

    def certificates(self, key_info: Element) -> bytes:
        """The chain in canonical PEM, from the signer's certificate on."""
        self.attributes(key_info, ())
        (data,) = self.children(key_info, "X509Data")
        self.attributes(data, ())
        names = ("X509Certificate",) * min(len(data.elements), _MAX_CERTIFICATES)
        found = [self.binary(one) for one in self.children(data, *names)]
        return b"".join(map(_pem, found))

    def children(self, element: Element, *names: str) -> Sequence[Element]:
        """Exactly these, in this order, with nothing but white space between them."""
        found = [one.local if one.space == _DS else one.name for one in element.elements]
        if tuple(found) != names or element.text.strip():
            what = f"{element.local} has {', '.join(found)[:100] or 'nothing'} in it"
            raise self.refusal("signature", f"{what}, not {', '.join(names)}")
        return element.elements

    def algorithm(self, element: Element, known: frozenset[str]) -> None:
        self.attributes(element, ("Algorithm",))
        if element.get("Algorithm") not in known or element.children:
            what = f"{element.local} is {element.get('Algorithm')!r}, which is not taken here"
            raise self.refusal("signature", what)

    def attributes(self, element: Element, names: tuple[str, ...]) -> None:
        if tuple(one.name for one in element.attributes) != names:
            what = ", ".join(one.name for one in element.attributes) or "none"
            raise self.refusal("signature", f"the attributes of {element.local} are {what[:100]}")

    def binary(self, element: Element) -> bytes:
        """Base64, in lines or not."""
        self.attributes(element, ())
        text = "".join(element.text.split())
        try:
            value = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise self.refusal("signature", f"{element.local} is not base64") from error
        if element.elements or not value or base64.b64encode(value).decode() != text:
            raise self.refusal("signature", f"{element.local} is not canonical base64")
        return value

    def refusal(self, kind: str, detail: str) -> EvidenceError:
        return EvidenceError(f"{self.rules.prefix}_{kind}", f"{self.rules.what}: {detail}"[:400])


def _pem(der: bytes) -> bytes:
    text = base64.b64encode(der)
    lines = (text[at : at + 64] + b"\n" for at in range(0, len(text), 64))
    return b"-----BEGIN CERTIFICATE-----\n" + b"".join(lines) + b"-----END CERTIFICATE-----\n"
