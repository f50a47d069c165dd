"""The same request told twice is done once.

Within (caller, method, path) a key stands for one body: told again with the same body it gets the
kept answer, with another body 422. Requests with the same key wait for each other, so that only
one of them is executed. What is kept outlives a restart, for as long as the store keeps it;
answers of 500 and above are not kept, because trying again is the right thing after them.

Bodies may hold secrets, so that only a keyed digest of them is kept.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import re
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

from agent.api.problems import HttpError
from agent.api.reply import JSON, PROBLEM, Reply
from agent.host.paced_log import PacedLog
from agent.store.port import KeptAnswer, StoreError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_log = PacedLog(logging.getLogger(__name__))
REPLAYED = {"Idempotent-Replayed": "true"}
_KEY = re.compile(r"[\x21-\x7e]{1,200}")


class RequestId(NamedTuple):
    """Whose request, and which."""

    caller: str
    method: str
    path: str
    key: str


class Mark(NamedTuple):
    """A request and its body, as keyed digests (hex)."""

    request: str
    body: str

    def __str__(self) -> str:
        return f"{self.request}:{self.body}"

    def marks(self, recorded: str | None) -> bool:
        """Whether what was recorded is this request's. HttpError 422 if with another body."""
        if recorded is None or not recorded.startswith(f"{self.request}:"):
            return False
        if recorded != str(self):
            raise _reused()
        return True


class Answers(Protocol):
    """Where answers are kept: durable, forgotten after 7 days."""

    async def get(self, caller: str, method: str, path: str, key: str) -> KeptAnswer | None: ...

    async def put(
        self, caller: str, method: str, path: str, key: str, answer: KeptAnswer
    ) -> None: ...


def parse_key(text: str) -> str:
    """The header's value, or HttpError 400."""
    if not _KEY.fullmatch(text):
        raise HttpError(
            400,
            "bad_request",
            "An Idempotency-Key is 1 to 200 visible ASCII characters.",
            field="Idempotency-Key",
        )
    return text


@dataclass(slots=True)
class _Turn:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiting: int = 0


class Idempotency:
    """One a process: it orders the requests that bear the same key."""

    def __init__(self, answers: Answers, body_key: bytes) -> None:
        self._answers = answers
        self._body_key = body_key
        self._turns: dict[RequestId, _Turn] = {}

    @property
    def waiting(self) -> int:
        """How many keys are being executed or waited for."""
        return len(self._turns)

    def mark(self, which: RequestId, body: bytes) -> Mark:
        """What an update that the request begins is recorded with. Shows neither key nor body."""
        return Mark(self._digest("\0".join(which).encode()), self._digest(body))

    def _digest(self, data: bytes) -> str:
        return hmac.new(self._body_key, data, hashlib.sha256).hexdigest()

    async def once(
        self,
        which: RequestId,
        body: bytes,
        execute: Callable[[], Awaitable[Reply]],
        recall: Callable[[Mark], Awaitable[Reply | None]],
    ) -> Reply:
        """The kept answer, or the answer of executing it now. HttpError 422 for another body.

        `recall` gives the answer of a request that was executed by an agent that died before it
        could keep it; None if it was not executed.
        """
        mark = self.mark(which, body)
        async with self._turn(which):
            kept = await self._answers.get(*which)
            if kept is not None:
                return _again(kept, mark.body)
            reply = await recall(mark) or await execute()
            if reply.status < 500:
                kept = KeptAnswer(body_digest=mark.body, status=reply.status, body=reply.body)
                await self._keep(which, kept)
            return reply

    async def _keep(self, which: RequestId, answer: KeptAnswer) -> None:
        """It is done and durable: that its answer cannot be kept must not make it look undone."""
        try:
            await self._answers.put(*which, answer)
        except StoreError as error:
            _log.warning("answer not kept for its idempotency key: %s", error)

    @asynccontextmanager
    async def _turn(self, which: RequestId) -> AsyncIterator[None]:
        turn = self._turns.setdefault(which, _Turn())
        turn.waiting += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.waiting -= 1
            if not turn.waiting:
                del self._turns[which]


def _again(kept: KeptAnswer, digest: str) -> Reply:
    if not hmac.compare_digest(kept.body_digest, digest):
        raise _reused()
    media = PROBLEM if kept.status >= 400 else JSON
    return Reply(kept.status, kept.body, media, REPLAYED)


def _reused() -> HttpError:
    detail = "This Idempotency-Key was used with another body."
    return HttpError(422, "idempotency_key_reused", detail, field="Idempotency-Key")
