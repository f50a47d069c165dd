"""The answers of Intel's service that a guest hands on, told apart by what was asked. Pure.

Source: Intel SGX/TDX Provisioning Certification Service API, version 4. Issuer chains stand
URL-quoted in headers. Only the path of an address counts: whoever caches the service has another
host. Answers to other questions are left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes, urlsplit

from agent.attestation.collateral import PcsResponse
from agent.attestation.evidence import EvidenceError
from agent.attestation.tdx.collateral import TdxCollateral, collateral_from_answers, malformed


@dataclass(frozen=True, slots=True)
class _Question:
    """`chain`: the header that holds the issuer chain; None where there is none to need."""

    name: str
    path_end: str
    chain: str | None = None


_TCB_INFO = _Question("tcb_info", "/tdx/certification/v4/tcb", "tcb-info-issuer-chain")
_QE_IDENTITY = _Question(
    "qe_identity", "/tdx/certification/v4/qe/identity", "sgx-enclave-identity-issuer-chain"
)
_PCK_CRL = _Question("pck_crl", "/sgx/certification/v4/pckcrl")
_ROOT_CRL = _Question("root_ca_crl", "/IntelSGXRootCA.der")


def collateral_of(responses: Sequence[PcsResponse]) -> TdxCollateral:
    """Raises EvidenceError `tdx_collateral_missing`, or `tdx_collateral_malformed` where a
    question is answered twice or an answer cannot be read.
    """
    tcb_info = _answer(responses, _TCB_INFO)
    qe_identity = _answer(responses, _QE_IDENTITY)
    return collateral_from_answers(
        tcb_info=tcb_info.body(),
        tcb_info_issuer_chain=_chain(tcb_info, _TCB_INFO),
        qe_identity=qe_identity.body(),
        qe_identity_issuer_chain=_chain(qe_identity, _QE_IDENTITY),
        pck_crl=_answer(responses, _PCK_CRL).body(),
        root_ca_crl=_answer(responses, _ROOT_CRL).body(),
    )


def _answer(responses: Sequence[PcsResponse], question: _Question) -> PcsResponse:
    found = [one for one in responses if _path(one.url).endswith(question.path_end)]
    if not found:
        raise EvidenceError(
            "tdx_collateral_missing", f"Intel's collateral for the quote has no {question.name}"
        )
    if len(found) > 1:
        raise malformed(question.name, f"there are {len(found)} of it")
    return found[0]


def _chain(response: PcsResponse, question: _Question) -> str:
    values = [
        value
        for name, given in response.headers.items()
        if name.lower() == question.chain
        for value in given
    ]
    if len(values) != 1:
        raise malformed(question.name, f"it has {len(values)} headers {question.chain}, not one")
    try:
        return unquote_to_bytes(values[0]).decode("ascii")
    except UnicodeError as error:
        raise malformed(question.name, f"its header {question.chain} is not ASCII") from error


def _path(url: str) -> str:
    try:
        return urlsplit(url).path
    except ValueError as error:
        raise malformed("collateral intel-pcs", "the address of a response is none") from error
