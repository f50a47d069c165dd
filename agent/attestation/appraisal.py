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
from agent.attestation.origin import Origin
from agent.attestation.policy import (
    EvidencePolicy,
    check_claims,
    check_devices,
    check_root,
    decide,
    simulated_devices,
)
from agent.attestation.policy_document import check_freshness, check_tls_key
from agent.attestation.port import Check, CollateralUsed, Verdict
from agent.attestation.roots import Trust
from agent.attestation.strict_json import read_json, shown

if TYPE_CHECKING:
    from agent.attestation.claims import Claims


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
    case = _Appraisal(document, question, policy, trust)
    case.checks.append(check_freshness(document, allow_unfresh=policy.config.allow_unfresh))
    try:
        match document.cpu:
            case CpuKind.SNP:
                case.judge_snp(endorsements)
            case CpuKind.TDX:
                case.judge_tdx()
            case _:
                assert_never(document.cpu)
        case.judge_devices()
    except EvidenceError as error:
        case.checks.append(refusal(error))
    return decide(
        case.checks,
        simulated=case.simulated,
        firmware=case.firmware,
        origin=case.origin,
        collateral=case.collateral,
    )


def refusal(error: EvidenceError) -> Check:
    """The failed check that an error comes to."""
    return Check(code=error.code, passed=False, detail=str(error))


class _Appraisal:
    """The checks of one document so far, in their order, and what its evidence is."""

    def __init__(
        self, document: Document, question: EvidenceQuestion, policy: EvidencePolicy, trust: Trust
    ) -> None:
        self._document = document
        self._question = question
        self._policy = policy
        self._trust = trust
        self._expected = msgspec.structs.replace(
            question.expected, report_data=document.report_data
        )
        self.checks: list[Check] = []
        self.simulated = False
        self.firmware: str | None = None
        self.origin: Origin | None = None
        self.collateral: tuple[CollateralUsed, ...] = ()

    def judge_snp(self, given: Endorsements | None) -> None:
        """Raises EvidenceError where there are no claims."""
        from agent.attestation.snp import verify_report

        given = self._document.collateral.amd or given
        if given is None:
            raise EvidenceError(
                "endorsement_missing",
                "neither the document nor a cache has the certificates for this report",
            )
        now = self._question.now
        claims = verify_report(self._document.report, given, self._trust, now)
        self.collateral += claims.collateral
        self._bound(claims)
        self.checks += check_claims(claims, self._policy, self._expected, now)

    def judge_tdx(self) -> None:
        """What the signed quote says comes first: wrong collateral must not hide a debug TD.

        Raises EvidenceError where there are no claims, or no collateral that is good.
        """
        from agent.attestation.policy_tdx import check_quote, check_tcb
        from agent.attestation.tdx.answers import collateral_of
        from agent.attestation.tdx.revocation import newest_lists
        from agent.attestation.tdx.verify import judge_collateral, verify_signatures_of

        now, config = self._question.now, self._policy.config.tdx
        signed = verify_signatures_of(
            self._document.report, now, root_spki_sha256=self._trust.intel
        )
        self._bound(signed.claims)
        simulated = signed.claims.simulated
        self.checks.append(check_root("genuine_root", self._policy, simulated=simulated))
        self.checks += check_quote(signed.claims, config, self._expected)
        given = self._document.collateral
        collateral = newest_lists(collateral_of(given.intel), given.intel_held)
        claims = judge_collateral(signed, collateral, now)
        self.collateral += claims.collateral
        self.checks += check_tcb(claims, config, self._expected, now)

    def judge_devices(self) -> None:
        """The evidence of each is over the nonce itself; report data binds the list of them."""
        gpus, devices = self._question.expected.gpus, self._document.devices
        if not gpus and not devices:
            return
        from agent.attestation.gpu.golden import References, manifests_used
        from agent.attestation.gpu.items import verify_items

        now, manifests = self._question.now, self._document.collateral.manifests
        claims = verify_items(devices, now, self._trust.nvidia)
        references = References(manifests=manifests, root_spki_sha256=self._trust.nvidia_rim)
        self.simulated |= simulated_devices(claims, references)
        nonce = self._question.nonce
        self.checks += check_devices(
            claims, self._policy, references, nonce=nonce, expected=self._expected, now=now
        )
        if self.origin is not None:
            keys = tuple(sorted(device.identity for device in claims))
            self.origin = msgspec.structs.replace(self.origin, devices=keys)
        self.collateral += manifests_used(claims, references, now)

    def _bound(self, claims: Claims) -> None:
        """Whose word it is, and over which key."""
        self.simulated, self.firmware = claims.simulated, claims.firmware
        keys = self._document.keys or keys_in_report_data(claims.report_data)
        self.checks.append(check_tls_key(keys, self._question.spki_sha256))
        self.origin = Origin(
            chip=claims.chip,
            report_id=claims.report_id,
            spki_sha256=keys.tls_spki_sha256.hex(),
        )
