"""From the bytes that a guest sent to a verdict: reads, verifies, judges. Does no I/O.

The one place that knows which technology verifies which evidence. Whatever cannot be believed
ends as a failed check with the code of what was wrong, beside those that had passed by then.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import TYPE_CHECKING, assert_never

import msgspec

from agent.attestation.collateral import Endorsements
from agent.attestation.document import (
    MAX_DOCUMENT_BYTES,
    CpuKind,
    Document,
    keys_in_report_data,
)
from agent.attestation.document_v2 import DUMMY, FORMATS, read_v2
from agent.attestation.document_v3 import FORMAT, read_v3
from agent.attestation.evidence import EvidenceError
from agent.attestation.expected import Expected
from agent.attestation.policy import (
    EvidencePolicy,
    check_claims,
    check_devices,
    decide,
    simulated_devices,
)
from agent.attestation.policy_document import check_freshness, check_tls_key
from agent.attestation.port import Check, Verdict
from agent.attestation.roots import Trust
from agent.attestation.strict_json import read_json, shown

if TYPE_CHECKING:
    from agent.attestation.claims import Claims
    from agent.attestation.gpu.claims import GpuClaims
    from agent.attestation.gpu.golden import References


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceQuestion:
    """What was asked, over which key it was answered, and what the answer is held against."""

    nonce: bytes
    spki_sha256: str
    expected: Expected
    now: dt.datetime


class _Envelope(msgspec.Struct, frozen=True):
    """The member by which versions are told apart; the version's own reader sees the rest."""

    format: str


def read_document(body: bytes, nonce: bytes) -> Document:
    """Raises EvidenceError; see `read_v2` and `read_v3`. `document_dummy`: proves nothing."""
    if len(body) > MAX_DOCUMENT_BYTES:
        raise EvidenceError(
            "document_too_large", f"the document is longer than {MAX_DOCUMENT_BYTES} bytes"
        )
    form = read_json(body, _Envelope, "the document").format
    if form == FORMAT:
        return read_v3(body, nonce)
    if form == DUMMY:
        raise EvidenceError("document_dummy", "the guest serves a dummy, which proves nothing")
    if form in FORMATS:
        return read_v2(body)
    raise EvidenceError("document_format", f"format {shown(form)} is not known")


def appraise(
    document: Document,
    question: EvidenceQuestion,
    policy: EvidencePolicy,
    trust: Trust,
    endorsements: Endorsements | None = None,
) -> Verdict:
    """Every check that the evidence comes to. `endorsements`: where the document has none."""
    checks = [check_freshness(document, allow_unfresh=policy.config.allow_unfresh)]
    simulated, firmware = False, None
    try:
        claims = _claims(document, question, trust, endorsements)
        simulated, firmware = claims.simulated, claims.firmware
        keys = document.keys or keys_in_report_data(claims.report_data)
        checks.append(check_tls_key(keys, question.spki_sha256))
        expected = msgspec.structs.replace(question.expected, report_data=document.report_data)
        checks += check_claims(claims, policy, expected, question.now)
        if question.expected.gpus or document.devices:
            devices, references = _devices(document, question, trust)
            simulated |= simulated_devices(devices, references)
            checks += check_devices(
                devices,
                policy,
                references,
                nonce=question.nonce,
                gpus=question.expected.gpus,
                now=question.now,
            )
    except EvidenceError as error:
        checks.append(refusal(error))
    return decide(checks, simulated=simulated, firmware=firmware)


def refusal(error: EvidenceError) -> Check:
    """The failed check that an error comes to."""
    return Check(code=error.code, passed=False, detail=str(error))


def _claims(
    document: Document, question: EvidenceQuestion, trust: Trust, given: Endorsements | None
) -> Claims:
    match document.cpu:
        case CpuKind.SNP:
            from agent.attestation.snp import verify_report

            given = document.collateral.amd or given
            if given is None:
                raise EvidenceError(
                    "endorsement_missing",
                    "neither the document nor a cache has the certificates for this report",
                )
            return verify_report(document.report, given, trust, question.now)
        case CpuKind.TDX:
            from agent.attestation.tdx.answers import collateral_of
            from agent.attestation.tdx.verify import verify_quote

            collateral = collateral_of(document.collateral.intel)
            return verify_quote(
                document.report, collateral, question.now, root_spki_sha256=trust.intel
            )
        case _:
            assert_never(document.cpu)


def _devices(
    document: Document, question: EvidenceQuestion, trust: Trust
) -> tuple[tuple[GpuClaims, ...], References]:
    """The evidence of each is over the nonce itself; report data binds the list of them."""
    from agent.attestation.gpu.golden import References
    from agent.attestation.gpu.items import verify_items

    claims = verify_items(document.devices, question.now, trust.nvidia)
    given = document.collateral.manifests
    return claims, References(manifests=given, root_spki_sha256=trust.nvidia_rim)
