"""A small reading of SNP evidence, written against the public formats, not with our own code.

It judges nothing: it says what a document binds, or raises AssertionError where it contradicts
itself or a signature does not hold.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

PSS = padding.PSS(padding.MGF1(hashes.SHA384()), 48)


@dataclass(frozen=True)
class Bound:
    """What a v3 document proves."""

    nonce: str
    measurement: str
    tls_spki_sha256: str
    root_pem: bytes


def read_v3(document: dict[str, Any]) -> Bound:
    """What it binds, every signature checked up to the root that it brings."""
    nonce = document["challenge"]["nonce"]
    material = base64.b64decode(document["crypto_material"], validate=True)
    devices = base64.b64decode(document["device_evidence"], validate=True)
    report = base64.b64decode(document["cpu_evidence"]["report_base64"], validate=True)
    text = b"https://tinfoil.sh/report-data/v1" + bytes.fromhex(nonce)
    text += hashlib.sha256(material).digest() + hashlib.sha256(devices).digest()
    assert report[0x50:0x90] == hashlib.sha256(text).digest() + bytes(32)
    (entry,) = document["collateral"]
    assert entry["format"] == "https://tinfoil.sh/collateral/amd-vcek/v1"
    vcek = x509.load_der_x509_certificate(base64.b64decode(entry["data"]["vcek_der_base64"]))
    ask, ark = x509.load_pem_x509_certificates(entry["data"]["cert_chain_pem"].encode())
    check_chain(vcek, ask, ark)
    check_report(report, vcek)
    (tls,) = [i["data"] for i in json.loads(material)["items"] if i["id"] == "tls"]
    return Bound(
        nonce=nonce,
        measurement=report[0x90:0xC0].hex(),
        tls_spki_sha256=tls,
        root_pem=ark.public_bytes(serialization.Encoding.PEM),
    )


def check_chain(vcek: x509.Certificate, ask: x509.Certificate, ark: x509.Certificate) -> None:
    """Each signed the one before, in AMD's one way."""
    for issued, issuer in ((vcek, ask), (ask, ark), (ark, ark)):
        assert issued.issuer == issuer.subject
        issuer.public_key().verify(
            issued.signature, issued.tbs_certificate_bytes, PSS, hashes.SHA384()
        )


def check_report(report: bytes, vcek: x509.Certificate) -> None:
    """The report is the VCEK's, and tells the TCB and the chip that it certifies."""
    assert len(report) == 1184
    r, s = (int.from_bytes(report[at : at + 72], "little") for at in (0x2A0, 0x2E8))
    key = vcek.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    key.verify(encode_dss_signature(r, s), report[:0x2A0], ec.ECDSA(hashes.SHA384()))
    extensions = {
        e.oid.dotted_string: e.value.value
        for e in vcek.extensions
        if e.oid.dotted_string.startswith("1.3.6.1.4.1.3704.")
    }
    assert extensions["1.3.6.1.4.1.3704.1.4"] == report[0x1A0:0x1E0]
    for part, byte in ((1, 0), (2, 1), (3, 6), (8, 7)):
        number = extensions[f"1.3.6.1.4.1.3704.1.3.{part}"]
        assert number[0] == 2
        assert int.from_bytes(number[2:]) == report[0x180 + byte]
