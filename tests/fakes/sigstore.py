"""A Sigstore of our own: authority, certificate log, transparency log; good bundles and bad ones.

Keys, certificates, promises, tree and signatures are real ones, under a root that a test names.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import json
import struct
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

NOW = dt.datetime(2026, 6, 1, 12, tzinfo=dt.UTC)
MINUTE = dt.timedelta(minutes=1)
YEAR = dt.timedelta(days=365)
ISSUER = "https://issuer.example"
REPO = "owner/name"
REF = "refs/tags/v1"
NAME = f"https://github.com/{REPO}/.github/workflows/build.yml@{REF}"
STATEMENT = "https://in-toto.io/Statement/v1"
RELEASE = "https://tinfoil.sh/predicate/snp-tdx-multiplatform/v1"
PAYLOAD = "application/vnd.in-toto+json"
DIGEST = hashlib.sha256(b"the release").hexdigest()
_FULCIO = "1.3.6.1.4.1.57264.1"
_SCTS = x509.ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2")
_SHA256 = ec.ECDSA(hashes.SHA256())
Json = dict[str, Any]


@cache
def key(name: str) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def spki(name: str) -> bytes:
    return key(name).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def key_id(name: str) -> bytes:
    return hashlib.sha256(spki(name)).digest()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def measurement(snp: str = "aa" * 48, rtmr1: str = "bb" * 48, rtmr2: str = "cc" * 48) -> Json:
    return {"snp_measurement": snp, "tdx_measurement": {"rtmr1": rtmr1, "rtmr2": rtmr2}}


def subject(digest: str = DIGEST) -> Json:
    return {"name": "manifest.json", "digest": {"sha256": digest}}


@cache
def authority(name: str = "authority") -> x509.Certificate:
    who = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a Sigstore of our own")])
    public = key(name).public_key()
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    return (
        x509.CertificateBuilder()
        .subject_name(who)
        .issuer_name(who)
        .public_key(public)
        .serial_number(1)
        .not_valid_before(NOW - YEAR)
        .not_valid_after(NOW + YEAR)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key(name), hashes.SHA256())
    )


@dataclass(frozen=True)
class Signature:
    """A good one by default; `but` says what is different about it. Keys go by their names."""

    statement: str = STATEMENT
    predicate_type: str = RELEASE
    predicate: Any = None
    subjects: tuple[Json, ...] = (subject(),)
    payload_type: str = PAYLOAD
    at: dt.datetime = NOW
    begin: dt.datetime = NOW - MINUTE
    end: dt.datetime = NOW + 9 * MINUTE
    extensions: tuple[tuple[int, str | None], ...] = ()
    issued_by: str = "authority"
    scts: tuple[str, ...] = ("certificates",)
    sct_signed_by: str | None = None
    signed_by: str = "workflow"
    log: str = "log"
    promise_signed_by: str | None = None
    checkpoint_signed_by: str | None = None
    checkpoint_root: bytes | None = None
    logged_payload: bytes | None = None

    def but(self, **changes: Any) -> Signature:
        return replace(self, **changes)

    def payload(self) -> bytes:
        statement = {
            "_type": self.statement,
            "subject": list(self.subjects),
            "predicateType": self.predicate_type,
            "predicate": measurement() if self.predicate is None else self.predicate,
        }
        return json.dumps(statement).encode()

    def bundle(self) -> Json:
        payload, kind = self.payload(), self.payload_type
        signed = f"DSSEv1 {len(kind)} {kind} {len(payload)} ".encode() + payload
        signature = key(self.signed_by).sign(signed, _SHA256)
        certificate = self.certificate()
        return {
            "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
            "verificationMaterial": {
                "certificate": {"rawBytes": b64(certificate.public_bytes(Encoding.DER))},
                "tlogEntries": [self._entry(payload, signature, certificate)],
            },
            "dsseEnvelope": {
                "payload": b64(payload),
                "payloadType": kind,
                "signatures": [{"sig": b64(signature)}],
            },
        }

    def certificate(self) -> x509.Certificate:
        bare = self._builder().sign(key(self.issued_by), hashes.SHA256())
        if not self.scts:
            return bare
        listed = b"".join(self._sct(log, bare.tbs_certificate_bytes) for log in self.scts)
        data = struct.pack(">H", len(listed)) + listed
        size = bytes((len(data),)) if len(data) < 0x80 else bytes((0x82, *len(data).to_bytes(2)))
        if 0x80 <= len(data) < 0x100:
            size = bytes((0x81, len(data)))
        promises = x509.UnrecognizedExtension(_SCTS, b"\x04" + size + data)
        builder = self._builder().add_extension(promises, critical=False)
        return builder.sign(key(self.issued_by), hashes.SHA256())

    def _builder(self) -> x509.CertificateBuilder:
        issuer = authority(self.issued_by)
        usage = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
        signer = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING])
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(issuer.subject)
            .public_key(key("workflow").public_key())
            .serial_number(0x77)
            .not_valid_before(self.begin)
            .not_valid_after(self.end)
            .add_extension(usage, critical=True)
            .add_extension(signer, critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key()),  # type: ignore[arg-type]
                critical=False,
            )
            .add_extension(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(NAME)]), critical=True
            )
        )
        texts = {1: ISSUER, 5: REPO, 6: REF, 8: ISSUER} | dict(self.extensions)
        for number, text in texts.items():
            if text is not None:
                data = text.encode()
                value = bytes((12, len(data))) + data if number >= 8 else data
                oid = x509.ObjectIdentifier(f"{_FULCIO}.{number}")
                extension = x509.UnrecognizedExtension(oid, value)
                builder = builder.add_extension(extension, critical=False)
        return builder

    def _sct(self, log: str, certificate: bytes) -> bytes:
        """RFC 6962, 3.2 and 3.3: over the certificate without its promises."""
        at = int(self.begin.timestamp() * 1000)
        size = len(certificate).to_bytes(3)
        signed = struct.pack(">BBQH", 0, 0, at, 1) + key_id(self.issued_by) + size + certificate
        signature = key(self.sct_signed_by or log).sign(signed + b"\0\0", _SHA256)
        body = b"\0" + key_id(log) + struct.pack(">QH", at, 0)
        body += b"\4\3" + struct.pack(">H", len(signature)) + signature
        return struct.pack(">H", len(body)) + body

    def _entry(self, payload: bytes, signature: bytes, certificate: x509.Certificate) -> Json:
        body = self._body(self.logged_payload or payload, signature, certificate)
        sibling = hashlib.sha256(b"another entry").digest()
        root = hashlib.sha256(b"\1" + hashlib.sha256(b"\0" + body).digest() + sibling).digest()
        return {
            "logIndex": "7",
            "logId": {"keyId": b64(key_id(self.log))},
            "kindVersion": {"kind": "dsse", "version": "0.0.1"},
            "integratedTime": str(int(self.at.timestamp())),
            "inclusionPromise": {"signedEntryTimestamp": b64(self._promise(body))},
            "inclusionProof": {
                "logIndex": "0",
                "rootHash": b64(root),
                "treeSize": "2",
                "hashes": [b64(sibling)],
                "checkpoint": {"envelope": self._checkpoint(root)},
            },
            "canonicalizedBody": b64(body),
        }

    def _body(self, payload: bytes, signature: bytes, certificate: x509.Certificate) -> bytes:
        entry = {
            "apiVersion": "0.0.1",
            "kind": "dsse",
            "spec": {
                "envelopeHash": {"algorithm": "sha256", "value": "00" * 32},
                "payloadHash": {
                    "algorithm": "sha256",
                    "value": hashlib.sha256(payload).hexdigest(),
                },
                "signatures": [
                    {
                        "signature": b64(signature),
                        "verifier": b64(certificate.public_bytes(Encoding.PEM)),
                    }
                ],
            },
        }
        return json.dumps(entry, separators=(",", ":"), sort_keys=True).encode()

    def _promise(self, body: bytes) -> bytes:
        signed = {
            "body": b64(body),
            "integratedTime": int(self.at.timestamp()),
            "logID": key_id(self.log).hex(),
            "logIndex": 7,
        }
        data = json.dumps(signed, separators=(",", ":"), sort_keys=True).encode()
        return key(self.promise_signed_by or self.log).sign(data, _SHA256)

    def _checkpoint(self, root: bytes) -> str:
        note = f"a log - 1\n2\n{b64(self.checkpoint_root or root)}\n"
        signature = key(self.checkpoint_signed_by or self.log).sign(note.encode(), _SHA256)
        return f"{note}\n\u2014 a.log {b64(key_id(self.log)[:4] + signature)}\n"


def trusted_root() -> Json:
    """It names a second log of each kind, which signed nothing unless a test says so."""

    def log(name: str) -> Json:
        valid = {"start": (NOW - YEAR).isoformat()}
        public = {"rawBytes": b64(spki(name)), "keyDetails": "PKIX_ECDSA_P256_SHA_256"}
        return {
            "baseUrl": f"https://{name}.example",
            "hashAlgorithm": "SHA2_256",
            "publicKey": public | {"validFor": valid},
            "logId": {"keyId": b64(key_id(name))},
        }

    chain = {"certificates": [{"rawBytes": b64(authority().public_bytes(Encoding.DER))}]}
    return {
        "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
        "tlogs": [log("log"), log("second log")],
        "ctlogs": [log("certificates"), log("more certificates")],
        "certificateAuthorities": [
            {
                "subject": {"organization": "ours", "commonName": "ours"},
                "uri": "https://authority.example",
                "certChain": chain,
                "validFor": {"start": (NOW - YEAR).isoformat()},
            }
        ],
        "timestampAuthorities": [],
    }
