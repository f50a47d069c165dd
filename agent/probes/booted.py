"""Whether a guest shows itself booted, asked once: for who is about to stop it."""

from __future__ import annotations

import ssl

from agent.host.contact import NoAnswerError
from agent.host.guest_sockets import UNMARKED, GuestSockets
from agent.model.enclave import Endpoint
from agent.probes.answers import MAX_BODY_BYTES, judge_boot_stages, read_document

_PATH = "/.well-known/tinfoil-boot-stages"


async def serves_booted(
    endpoint: Endpoint,
    context: ssl.SSLContext,
    timeout_s: float,
    sockets: GuestSockets = UNMARKED,
) -> bool:
    """Its boot stages, over a connection of its own, are complete. No answer is a no."""
    from agent.host.guest_http import GuestHttp

    async with GuestHttp(endpoint, context, sockets=sockets) as guest_http:
        try:
            answer = await guest_http.get(_PATH, timeout_s=timeout_s, max_bytes=MAX_BODY_BYTES)
        except NoAnswerError:
            return False
    return judge_boot_stages(read_document(answer.status, answer.body)).complete
