"""Fetching a guest's document, with the key of the connection that brought it.

Invariant: a body that is returned came whole, within its bounds, over one TLS connection whose
key is told beside it. A guest that is not ready to answer is told apart from one that answers
wrongly: the former is asked again.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass

from agent.attestation.document import MAX_DOCUMENT_BYTES, PATH
from agent.attestation.evidence import EvidenceError
from agent.attestation.port import KEY_CHANGED, NotYetError
from agent.host.contact import Ending, HttpAnswer, NoAnswerError, client_context
from agent.host.guest_sockets import UNMARKED, GuestSockets
from agent.model.enclave import Endpoint

_FRAME_BYTES = 64 * 1024  # headers and TLS records beside the body
_NOT_YET = 503


@dataclass(frozen=True, slots=True)
class Fetched:
    """The document's bytes, and the SHA-256 (hex) of the key that its connection showed."""

    body: bytes
    spki_sha256: str


class EvidenceFetcher:
    """Asks guests for their evidence, one fresh connection a question."""

    def __init__(
        self,
        *,
        timeout_s: float = 20.0,
        context: ssl.SSLContext | None = None,
        sockets: GuestSockets = UNMARKED,
    ) -> None:
        self._sockets = sockets
        self._timeout_s = timeout_s
        self._context = context or client_context()

    async def fetch(self, endpoint: Endpoint, nonce: bytes) -> Fetched:
        """The document over this nonce.

        Raises NotYetError, or EvidenceError `evidence_unavailable` (an answer that is neither a
        document nor a 503), `document_too_large`, or `tls_key_changed` (two keys in one visit).
        """
        from agent.host.guest_http import GuestHttp

        limit = MAX_DOCUMENT_BYTES
        async with GuestHttp(
            endpoint,
            self._context,
            max_bytes=limit + _FRAME_BYTES,
            sockets=self._sockets,
        ) as guest_http:
            try:
                answer = await guest_http.get(
                    f"{PATH}?nonce={nonce.hex()}", timeout_s=self._timeout_s, max_bytes=limit
                )
            except NoAnswerError as error:
                raise NotYetError(f"the guest gave no evidence: {error}") from error
            keys = tuple(guest_http.keys)
        body = _body(answer)
        if len(keys) != 1:
            raise EvidenceError(KEY_CHANGED, "the guest showed more than one TLS key")
        return Fetched(body, keys[0])


def _body(answer: HttpAnswer) -> bytes:
    if answer.status == _NOT_YET:
        raise NotYetError("the guest has no evidence yet (503)")
    if answer.status != 200:
        raise EvidenceError("evidence_unavailable", f"the guest answered {answer.status}")
    match answer.ending:
        case Ending.TOO_LONG:
            raise EvidenceError(
                "document_too_large", f"the document is longer than {MAX_DOCUMENT_BYTES} bytes"
            )
        case Ending.CUT_OFF:
            raise NotYetError("the guest's evidence broke off")
        case Ending.COMPLETE:
            return answer.body
