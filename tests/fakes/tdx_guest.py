"""What a TDX guest with NVIDIA's GPUs shows, and how it is judged: all of it may be wrong.

Whoever makes keys is made once, when the first document is asked for.
"""

from __future__ import annotations

import datetime as dt
import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any
from urllib.parse import quote

import msgspec

from agent.attestation.appraisal import EvidenceQuestion, appraise, read_document, refusal
from agent.attestation.evidence import EvidenceError
from agent.attestation.expected import Expected
from agent.attestation.policy import EvidencePolicy, decide
from agent.attestation.port import Verdict
from agent.attestation.roots import Trust
from agent.attestation.tdx.collateral import TdxCollateral
from agent.config import AttestationConfig, TdxConfig, TdxPlatform
from tests.fakes.attested_guest import HPKE, NONCE, SPKI, T, b64, devices_section, document_v3
from tests.fakes.attested_guest import keys_section as keys_of
from tests.fakes.intel import NOW, REPORT, FakeIntel
from tests.fakes.nvidia import SWITCH_FIELDS, FakeDevice, FakeNvidia

GPU_FORMAT = f"{T}/format/nvidia-gpu-evidence/v1"
SWITCH_FORMAT = f"{T}/format/nvidia-nvswitch-evidence/v1"
EXPECTED = Expected(rtmr1=REPORT["rtmr1"], rtmr2=REPORT["rtmr2"])
TDX = TdxConfig(
    platforms=(TdxPlatform(mrtd=REPORT["mrtd"].hex(), rtmr0=REPORT["rtmr0"].hex()),),
    mrseams=(REPORT["mrseam"].hex(),),
)
Answers = list[dict[str, Any]]
Items = Sequence[dict[str, Any]]


@cache
def intel() -> FakeIntel:
    return FakeIntel()


@cache
def nvidia() -> FakeNvidia:
    return FakeNvidia()


@cache
def device(number: int, chip: str = "GH100") -> FakeDevice:
    return nvidia().device(f"NVIDIA:{chip}:48B02DF44660DA{number:02X}")


def gpu_item(number: int, nonce: bytes = NONCE, **more: Any) -> dict[str, Any]:
    evidence = msgspec.to_builtins(device(number).evidence(nonce))
    item = {"kind": "gpu", "vendor": "nvidia", "format": GPU_FORMAT, "evidence": evidence}
    return {"id": f"gpu{number}", **item, **more}


def switch_item(*numbers: int, nonce: bytes = NONCE, **more: Any) -> dict[str, Any]:
    """Several switches in one item, as NVIDIA's tool prints them."""
    found = [
        device(number, "LS_10").evidence(nonce, arch="LS10", fields=SWITCH_FIELDS)
        for number in numbers
    ]
    evidence = {"evidences": msgspec.to_builtins(found), "result_code": 0, "result_message": "Ok"}
    item = {"kind": "nvswitch", "vendor": "nvidia", "format": SWITCH_FORMAT}
    return {"id": "nvswitch0", **item, "evidence": evidence | more}


def answers_of(collateral: TdxCollateral) -> Answers:
    """As Intel's service answers: inner documents with their signatures, chains in headers."""
    service, chains = (
        "https://pcs.example",
        ("TCB-Info-Issuer-Chain", "Sgx-Enclave-Identity-Issuer-Chain"),
    )
    info = (
        f'{{"tcbInfo":{collateral.tcb_info},"signature":"{collateral.tcb_info_signature.hex()}"}}'
    )
    identity = (
        f'{{"enclaveIdentity":{collateral.qe_identity},'
        f'"signature":"{collateral.qe_identity_signature.hex()}"}}'
    )
    return [
        _answer(
            f"{service}/tdx/certification/v4/tcb?fmspc=00",
            info.encode(),
            {chains[0]: [quote(collateral.tcb_info_issuer_chain)]},
        ),
        _answer(
            f"{service}/tdx/certification/v4/qe/identity?update=standard",
            identity.encode(),
            {chains[1]: [quote(collateral.qe_identity_issuer_chain)], "Request-ID": ["1"]},
        ),
        _answer(
            f"{service}/sgx/certification/v4/pckcrl?ca=platform&encoding=der", collateral.pck_crl
        ),
        _answer("https://certificates.example/IntelSGXRootCA.der", collateral.root_ca_crl),
    ]


def _answer(
    url: str, body: bytes, headers: Mapping[str, Sequence[str]] | None = None
) -> dict[str, Any]:
    return {"url": url, "headers": dict(headers or {}), "body_base64": b64(body)}


@dataclass(frozen=True)
class TdxGuest:
    """A good one by default; `but` says what is different about it or about who asks."""

    fields: dict[str, bytes] = field(default_factory=dict)
    make: dict[str, Any] = field(default_factory=dict)  # of the quote
    collateral: dict[str, Any] = field(default_factory=dict)
    answers: Callable[[Answers], object] | None = None  # changes them in place
    vendor: Callable[[], FakeIntel] = intel
    quote: Callable[[bytes], bytes] | None = None  # in the place of the vendor's, over report data
    given: Callable[[], TdxCollateral] | None = None  # in the place of the vendor's
    items: Callable[[], Items] = tuple  # of devices
    spki: str = SPKI  # that the guest binds
    nonce: bytes = NONCE
    shown_spki: str = SPKI
    now: dt.datetime = NOW
    expected: Expected = EXPECTED
    config: AttestationConfig = AttestationConfig(tdx=TDX)  # noqa: RUF009 - it is frozen
    allow_simulated: bool = True
    trust: Callable[[], Trust] | None = None
    manifests: Callable[[], Mapping[str, bytes]] = dict  # that the host has

    def but(self, **changes: Any) -> TdxGuest:
        return replace(self, **changes)

    def asks(self, **tdx: Any) -> TdxGuest:
        changed = msgspec.structs.replace(self.config.tdx, **tdx)
        return self.but(config=msgspec.structs.replace(self.config, tdx=changed))

    def v3(self) -> bytes:
        keys = json.dumps(keys_of(self.spki)).encode()
        devices = json.dumps(devices_section(*self.items())).encode()
        responses = answers_of(
            self.given() if self.given else self.vendor().collateral(**self.collateral)
        )
        if self.answers:
            self.answers(responses)
        entry = {
            "id": "pcs",
            "role": "endorsement",
            "format": f"{T}/collateral/intel-pcs/v1",
            "subjects": ["cpu"],
            "data": {"responses": responses},
        }
        document = document_v3("tdx-quote", self._quote, [entry], self.nonce, keys, devices)
        return json.dumps(document).encode()

    def v2(self) -> bytes:
        """It has no room for collateral."""
        body = b64(gzip.compress(self._quote(bytes.fromhex(self.spki + HPKE))))
        return json.dumps({"format": f"{T}/predicate/tdx-guest/v2", "body": body}).encode()

    def judged(self, body: bytes) -> Verdict:
        """By the real verifier."""
        policy = EvidencePolicy(config=self.config, allow_simulated=self.allow_simulated)
        question = EvidenceQuestion(
            nonce=NONCE, spki_sha256=self.shown_spki, expected=self.expected, now=self.now
        )
        try:
            document = read_document(body, NONCE)
        except EvidenceError as error:
            return decide((refusal(error),), simulated=False)
        given = replace(document.collateral, manifests=self.manifests())
        document = replace(document, collateral=given)
        trust = self.trust() if self.trust else Trust(intel=intel().root, nvidia=nvidia().root)
        return appraise(document, question, policy, trust)

    def _quote(self, data: bytes) -> bytes:
        if self.quote:
            return self.quote(data)
        report = {"report_data": data, **self.fields}
        return self.vendor().quote(report=report, **self.make)
