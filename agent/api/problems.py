"""Errors as problem details: the only place that knows which error is which HTTP status.

What is not in the table is a fault of ours: it is logged whole, and answered as a bare 500.
"""

from __future__ import annotations

import logging
import math
from http import HTTPStatus

import msgspec
from aiohttp import web

from agent.api.reply import PROBLEM, Reply, with_headers
from agent.api.views import reason_view
from agent.attestation.port import ChipNotAcceptedError, NothingClaimedError, NotYetError
from agent.errors import AgentError, describe
from agent.host.files import StorageError
from agent.host.paced_log import PacedLog
from agent.inventory.port import GpuConditionError, UnknownGpuError
from agent.inventory.preparation.errors import PreparationError
from agent.model.reasons import ReasonCode
from agent.releases.port import ReleaseError, ReleaseSourceError
from agent.store.port import MEND_DAMAGE, StoreDamagedError, StoreError
from agent.traffic.port import TrafficError
from agent.updates.errors import (
    ConflictError,
    FieldError,
    LeaseExpiredError,
    PrunedError,
    RefusedError,
    UnknownNameError,
)
from agent.wire.answers import ProblemDetails
from agent.wire.views import ReasonView

_log = PacedLog(logging.getLogger(__name__))

_STATUS: tuple[tuple[type[AgentError], int], ...] = (
    (RefusedError, 409),
    (ConflictError, 409),
    (GpuConditionError, 409),
    (ReleaseError, 409),
    (UnknownNameError, 404),
    (UnknownGpuError, 404),
    (PreparationError, 409),
    (ChipNotAcceptedError, 409),
    (FieldError, 400),
    (PrunedError, 410),
    (LeaseExpiredError, 410),
    (ReleaseSourceError, 503),
    (StoreError, 503),
    (StorageError, 503),
    (TrafficError, 503),
    (NotYetError, 503),
    (NothingClaimedError, 501),
)
_RETRY_AFTER_S = {503: 2}
_DETAIL_LIMIT = 4096

_CODES = {
    400: "bad_request",
    403: "forbidden",
    404: "unknown_path",
    405: "method_not_allowed",
    413: "too_large",
    415: "not_json",
}


class HttpError(AgentError):
    """A problem of the request itself, found before the engine was asked."""

    def __init__(self, status: int, code: str, detail: str, field: str | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.field = field
        self._code = code

    @property
    def code(self) -> str:
        return self._code


def starting() -> HttpError:
    """Not adopted and reconciled yet."""
    return HttpError(503, "starting", "The agent is starting; ask again in a moment.")


def reply_to(error: Exception) -> Reply:
    """The answer to a request that raised."""
    if isinstance(error, HttpError):
        return problem(error.status, error.code, str(error), field=error.field)
    if isinstance(error, web.HTTPException):
        return _of_http(error)
    if isinstance(error, AgentError):
        status = _status_of(error)
        if status is not None:
            return _of_agent(error, status)
    _log.error("request failed unexpectedly", exc_info=error)
    return problem(500, "internal", "The agent failed; its log says why.")


def _status_of(error: AgentError) -> int | None:
    if error.code in ("disk_full", "disk_read_only"):
        return 503
    return next((status for kind, status in _STATUS if isinstance(error, kind)), None)


def _of_agent(error: AgentError, status: int) -> Reply:
    match error:
        case RefusedError():
            return problem(
                status,
                error.code,
                str(error),
                reasons=[reason_view(reason) for reason in error.reasons],
                retry_after_s=error.decision.retry_after_s,
            )
        case ReleaseError():
            text = describe(error)
            return problem(
                status,
                error.code,
                text,
                reasons=[ReasonView(code=ReasonCode.RELEASE_INVALID, detail=text)],
            )
        case FieldError():
            return problem(status, error.code, str(error), field=error.path)
        case PrunedError():
            return problem(status, error.code, str(error), oldest=error.oldest)
        case StoreDamagedError():
            return problem(status, error.code, f"{describe(error)}. Mend: {MEND_DAMAGE}")
    if status >= 500:
        _log.warning("request not served: %s", describe(error))
    return problem(status, error.code, describe(error))


def _of_http(error: web.HTTPException) -> Reply:
    code = _CODES.get(error.status, "http_error")
    match error:
        case web.HTTPMethodNotAllowed():
            allowed = ", ".join(sorted(error.allowed_methods))
            reply = problem(405, code, f"{error.method[:32]} is not one of {allowed}.")
            return with_headers(reply, {"Allow": allowed})
        case web.HTTPNotFound():
            return problem(404, code, "There is no such path; /openapi.json lists them all.")
        case web.HTTPRequestEntityTooLarge():
            return problem(413, code, "The body is over 2 MiB.")
    return problem(error.status, code, error.reason)


def problem(
    status: int,
    code: str,
    detail: str,
    *,
    reasons: list[ReasonView] | None = None,
    retry_after_s: float | None = None,
    field: str | None = None,
    oldest: int | None = None,
) -> Reply:
    """A reply with problem details."""
    unset = msgspec.UNSET
    body = ProblemDetails(
        type="about:blank",
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail[:_DETAIL_LIMIT],
        code=code,
        reasons=unset if reasons is None else reasons,
        retry_after_s=unset if retry_after_s is None else retry_after_s,
        field=unset if field is None else field,
        oldest=unset if oldest is None else oldest,
    )
    wait_s = _RETRY_AFTER_S.get(status) if retry_after_s is None else retry_after_s
    headers = {} if wait_s is None else {"Retry-After": str(max(1, math.ceil(wait_s)))}
    return Reply(status, msgspec.json.encode(body), PROBLEM, headers)
