"""What a guest with a simulated processor shows, and how it is judged: all of it may be wrong.

What takes keys is a callable, so that none is made before a test runs.
"""

from __future__ import annotations

import base64
import datetime as dt
import gzip
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from agent.attestation.appraisal import EvidenceQuestion, appraise, read_document, refusal
from agent.attestation.collateral import Endorsements
from agent.attestation.document_v3 import report_data_for
from agent.attestation.evidence import EvidenceError
from agent.attestation.expected import Expected
from agent.attestation.policy import EvidencePolicy, decide
from agent.attestation.port import Verdict
from agent.attestation.roots import Trust
from agent.config import AttestationConfig
from tests.fakes.snp_chain import MEASUREMENT, NOW, FakeAmd

T = "https://tinfoil.sh"
NONCE = bytes(range(100, 132))
SPKI = hashlib.sha256(b"the guest's TLS key").hexdigest()
HPKE = hashlib.sha256(b"the guest's HPKE key").hexdigest()
GENUINE_LOOKING = FakeAmd()
EXPECTED = Expected(snp_measurement=MEASUREMENT)
DEFAULTS = AttestationConfig()
Change = Callable[[dict[str, Any]], None]


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def pem(*certificates: bytes) -> str:
    made = ""
    for der in certificates:
        text = b64(der)
        lines = "\n".join(text[at : at + 64] for at in range(0, len(text), 64))
        made += f"-----BEGIN CERTIFICATE-----\n{lines}\n-----END CERTIFICATE-----\n"
    return made


def keys_section(spki: str = SPKI, **more: Any) -> dict[str, Any]:
    items = [
        {"id": "tls", "format": f"{T}/key/spki-fp-sha256/v1", "data": spki},
        {"id": "hpke", "format": f"{T}/key/x25519-hpke/v1", "data": HPKE},
    ]
    return {"format": f"{T}/crypto-material/v1", "items": items} | more


def devices_section(*items: dict[str, Any]) -> dict[str, Any]:
    return {"format": f"{T}/device-evidence/v1", "items": list(items)}


def document_v3(
    kind: str,
    report: Callable[[bytes], bytes],
    collateral: list[dict[str, Any]],
    nonce: bytes,
    keys: bytes,
    devices: bytes,
) -> dict[str, Any]:
    """`report` makes the evidence over the report data that it is given."""
    data = report_data_for(nonce, keys, devices)
    return {
        "format": f"{T}/predicate/attestation/v3",
        "challenge": {
            "nonce": nonce.hex(),
            "report_data": data.hex(),
            "report_data_algorithm": f"{T}/report-data/v1",
        },
        "cpu_evidence": {
            "format": f"{T}/format/{kind}/v1",
            "report_base64": b64(report(data)),
            "endorsed": {
                "crypto_material_hash": hashlib.sha256(keys).hexdigest(),
                "device_evidence_hash": hashlib.sha256(devices).hexdigest(),
            },
        },
        "crypto_material": b64(keys),
        "device_evidence": b64(devices),
        "collateral": collateral,
    }


@dataclass(frozen=True)
class Guest:
    """A good one by default; `but` says what is different about it or about who asks."""

    amd: FakeAmd = GENUINE_LOOKING
    fields: dict[str, int | bytes] = field(default_factory=dict)
    crls: Callable[[], tuple[bytes, ...]] = tuple
    held: Callable[[], tuple[bytes, ...]] = tuple  # revocation lists that the agent has
    endorsements: Callable[[], Endorsements] | None = None  # others than the chip's own
    spki: str = SPKI  # that the guest binds
    shown_spki: str = SPKI  # that the connection showed
    nonce: bytes = NONCE  # that the guest answers to
    asked: bytes = NONCE
    now: dt.datetime = NOW
    expected: Expected = EXPECTED
    config: AttestationConfig = DEFAULTS
    allow_simulated: bool = True
    trust: Callable[[], Trust] | None = None
    keys: dict[str, Any] | None = None
    devices: dict[str, Any] | None = None
    change: Change | None = None  # of the document, last of all
    spoil: Callable[[bytes], bytes] | None = None  # of the report's bytes

    def but(self, **changes: Any) -> Guest:
        return replace(self, **changes)

    def v3(self) -> bytes:
        keys = json.dumps(self.keys or keys_section(self.spki)).encode()
        devices = json.dumps(self.devices or devices_section()).encode()
        document = document_v3(
            "sev-snp-report", self._report, self._collateral(), self.nonce, keys, devices
        )
        if self.change:
            self.change(document)
        return json.dumps(document).encode()

    def v2(self) -> bytes:
        report = self._report(bytes.fromhex(self.spki + HPKE))
        document = {
            "format": f"{T}/predicate/sev-snp-guest/v2",
            "body": b64(gzip.compress(report)),
        }
        if self.change:
            self.change(document)
        return json.dumps(document).encode()

    def judged(self, body: bytes, given: Endorsements | None = None) -> Verdict:
        """By the real verifier."""
        policy = EvidencePolicy(config=self.config, allow_simulated=self.allow_simulated)
        question = EvidenceQuestion(
            nonce=self.asked, spki_sha256=self.shown_spki, expected=self.expected, now=self.now
        )
        try:
            document = read_document(body, self.asked)
        except EvidenceError as error:
            return decide((refusal(error),), simulated=False)
        if document.collateral.amd is not None:
            amd = replace(document.collateral.amd, held=self.held())
            document = replace(document, collateral=replace(document.collateral, amd=amd))
        trust = self.trust() if self.trust else self.amd.trust
        return appraise(document, question, policy, trust, given)

    def _report(self, data: bytes) -> bytes:
        report = self.amd.report(**{"report_data": data, **self.fields})
        return self.spoil(report) if self.spoil else report

    def _collateral(self) -> list[dict[str, Any]]:
        given = self.endorsements() if self.endorsements else self.amd.endorsements
        base: dict[str, Any] = {"role": "endorsement", "subjects": ["cpu"]}
        vcek = {"vcek_der_base64": b64(given.leaf), "cert_chain_pem": pem(given.ask, given.ark)}
        entries = [{**base, "id": "vcek", "format": f"{T}/collateral/amd-vcek/v1", "data": vcek}]
        for crl in self.crls():
            data = {"crl_der_base64": b64(crl)}
            entry = {**base, "id": "crl", "format": f"{T}/collateral/amd-crl/v1", "data": data}
            entries.append(entry)
        return entries


def accept_everything(guest: Guest, body: bytes) -> Verdict:
    """A verifier that is none."""
    del guest, body
    return Verdict(attested=True)
