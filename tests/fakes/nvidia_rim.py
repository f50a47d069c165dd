"""Reference manifests of a self-made NVIDIA, in the form of those that the real one publishes.

The text that is signed is written canonically by hand, so that it owes nothing to the code that
reads it: attributes in their order, no white space in a tag, and every namespace where Canonical
XML 1.1 has it.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from agent.attestation.pinned_chain import spki_sha256
from tests.fakes.certificates import END, Issued, issue
from tests.fakes.intel import sign_raw
from tests.fakes.nvidia import MEASUREMENTS

SWID = "http://standards.iso.org/iso/19770/-2/2015/schema.xsd"
SHA384 = "http://www.w3.org/2001/04/xmlenc#sha384"
DS = "http://www.w3.org/2000/09/xmldsig#"
C14N = "http://www.w3.org/2006/12/xml-c14n11"
SPACES = f'xmlns="{SWID}" xmlns:ns0="{SWID}" xmlns:ns2="{SHA384}"'

Golden = Mapping[int, Sequence[bytes]]
# The driver's and the VBIOS' manifest share the measurements of a device of the tests.
VBIOS_GOLDEN: Golden = {0: [MEASUREMENTS[0][1]], 1: [b"\xee" * 48, MEASUREMENTS[1][1]]}
DRIVER_GOLDEN: Golden = {2: [MEASUREMENTS[2][1]], 3: [MEASUREMENTS[3][1]]}


def resource(index: int, values: Sequence[bytes], active: str = "True") -> str:
    digests = "".join(f' ns2:Hash{n}="{value.hex()}"' for n, value in enumerate(values))
    plain = f'active="{active}" alternatives="{len(values)}" index="{index}"'
    rest = f'name="Measurement_{index}" size="48" type="Measurement"'
    return f"<ns0:Resource {plain} {rest}{digests}></ns0:Resource>"


def payload(golden: Golden) -> str:
    rows = [resource(index, values) for index, values in golden.items()]
    return "\n  ".join([*rows, resource(63, [bytes(48)], active="False")])


def content(
    golden: Golden, product: str = "GH100", version: str = "96.00.A5.00.01", rows: str = ""
) -> str:
    """The document without its signature, as it is signed."""
    return (
        f'<SoftwareIdentity {SPACES} name="{product}" tagId="of the tests">\n'
        f'<ns0:Meta colloquialVersion="{version}" edition="GPU" product="{product}"></ns0:Meta>\n'
        f"<ns0:Payload>{rows or payload(golden)}</ns0:Payload>\n</SoftwareIdentity>"
    )


def signed_info(signed: str, **more: str) -> str:
    """`more`: other algorithms, or another reference, than the one form."""
    use = {
        "by": C14N,
        "method": "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384",
        "uri": "",
        "enveloped": f"{DS}enveloped-signature",
        "digest": "http://www.w3.org/2001/04/xmldsig-more#sha384",
    } | more
    value = base64.b64encode(hashlib.sha384(signed.encode()).digest()).decode()
    steps = "".join(
        f'<ds:Transform Algorithm="{one}"></ds:Transform>' for one in (use["enveloped"], use["by"])
    )
    return (
        f'<ds:CanonicalizationMethod Algorithm="{use["by"]}"></ds:CanonicalizationMethod>'
        f'<ds:SignatureMethod Algorithm="{use["method"]}"></ds:SignatureMethod>'
        f'<ds:Reference URI="{use["uri"]}"><ds:Transforms>{steps}</ds:Transforms>'
        f'<ds:DigestMethod Algorithm="{use["digest"]}"></ds:DigestMethod>'
        f"<ds:DigestValue>{value}</ds:DigestValue></ds:Reference>"
    )


@dataclass
class FakeRimSigner:
    """A hierarchy of the manifests' own. `leaf_end`: when the signer's certificate ends."""

    leaf_end: datetime = END
    chain: tuple[Issued, ...] = field(init=False)

    def __post_init__(self) -> None:
        anchor = _issue("NVIDIA CoRIM signing Root CA")
        authority = _issue("NVIDIA Reference Value GH100 CA", anchor)
        signer = _issue("HCC RIM L4 Signer", authority, ca=False, end=self.leaf_end)
        self.chain = (signer, authority, anchor)

    @property
    def root(self) -> str:
        return spki_sha256(self.chain[-1].certificate)

    def manifest(self, golden: Golden, **meta: str) -> bytes:
        return self.signed(content(golden, **meta))

    def signed(self, text: str, info: str | None = None, **more: str) -> bytes:
        """The signature stands right before the end of the document's element."""
        info = signed_info(text, **more) if info is None else info
        return insert(text, self.signature(info))

    def signature(self, info: str) -> str:
        # A part of a document brings the namespaces that it was in.
        spaces = f'xmlns="{SWID}" xmlns:ds="{DS}" xmlns:ns0="{SWID}" xmlns:ns2="{SHA384}"'
        signed = f"<ds:SignedInfo {spaces}>{info}</ds:SignedInfo>".encode()
        value = base64.b64encode(sign_raw(self.chain[0].key, signed, hashes.SHA384())).decode()
        certificates = "".join(
            f"<ds:X509Certificate>{_lines(one)}</ds:X509Certificate>" for one in self.chain
        )
        return (
            f'<ds:Signature xmlns:ds="{DS}"><ds:SignedInfo>{info}</ds:SignedInfo>'
            f"<ds:SignatureValue>{value}</ds:SignatureValue><ds:KeyInfo><ds:X509Data>"
            f"{certificates}</ds:X509Data></ds:KeyInfo></ds:Signature>"
        )


def insert(text: str, signature: str) -> bytes:
    head, end, tail = text.rpartition("</SoftwareIdentity>")
    return f"{head}{signature}{end}{tail}".encode()


def _lines(one: Issued) -> str:
    text = base64.b64encode(one.certificate.public_bytes(Encoding.DER)).decode()
    return "".join(text[at : at + 64] + "\n" for at in range(0, len(text), 64))


def _issue(
    name: str, issuer: Issued | None = None, *, ca: bool = True, end: datetime = END
) -> Issued:
    return issue(name, issuer, ca=ca, curve=ec.SECP384R1(), digest=hashes.SHA384(), end=end)
