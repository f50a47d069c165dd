"""HTTP to the agent, with the standard library: it is loaded in a moment.

Every failure becomes a `Failure` with the exit code that the command line promises.
"""

from __future__ import annotations

import http.client
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, unquote

import msgspec

from agent.cli.exits import Exit, Failure
from agent.cli.reach import Local, Reach
from agent.wire.answers import ProblemDetails
from agent.wire.views import ReasonView

T = TypeVar("T")
TIMEOUT_S = 60.0
_LONGEST = 512


class Client:
    """Asks the agent; a connection a question. A path is its socket."""

    def __init__(self, where: Path | Reach, timeout_s: float = TIMEOUT_S) -> None:
        self._where: Reach = Local(where) if isinstance(where, Path) else where
        self._timeout_s = timeout_s

    def read(self, path: str, kind: type[T]) -> T:
        """GET as a value. Unknown members are ignored: the agent may be newer than we are."""
        return msgspec.json.decode(self.read_bytes(path), type=kind)

    def read_bytes(self, path: str) -> bytes:
        """GET as it came."""
        return self._ask("GET", path, None)

    def send(self, method: str, path: str, body: Any, kind: type[T]) -> T:
        """A change, and the answer as a value."""
        data = b"" if body is None else msgspec.json.encode(body)
        return msgspec.json.decode(self._ask(method, path, data), type=kind)

    def order(self, method: str, path: str) -> None:
        """A change that has nothing to answer."""
        self._ask(method, path, b"")

    @contextmanager
    def stream(self, path: str, last_event_id: int) -> Iterator[Iterator[bytes]]:
        """The lines of a stream of server-sent events. A broken one raises Failure UNREACHABLE."""
        connection = self._connection()
        try:
            with _reaching(self._where):
                connection.request("GET", path, headers={"Last-Event-ID": str(last_event_id)})
                answer = connection.getresponse()
                if answer.status != 200:
                    raise failure_of(answer.status, answer.read())
            yield self._lines(answer)
        finally:
            connection.close()

    def _lines(self, answer: http.client.HTTPResponse) -> Iterator[bytes]:
        while True:
            with _reaching(self._where):
                line = answer.readline()
            if not line:
                raise Failure(Exit.UNREACHABLE, "the agent closed the stream")
            yield line.rstrip(b"\r\n")

    def _ask(self, method: str, path: str, data: bytes | None) -> bytes:
        connection = self._connection()
        headers = {} if method == "GET" else self._where.headers
        headers |= {"Content-Type": "application/json"} if data else {}
        try:
            with _reaching(self._where):
                connection.request(method, path, body=data, headers=headers)
                answer = connection.getresponse()
                body = answer.read()
        finally:
            connection.close()
        if answer.status >= 400:
            raise self._helped(path, failure_of(answer.status, body))
        return body

    def _helped(self, path: str, failure: Failure) -> Failure:
        """A deployment that is not there, with those that are."""
        parts = path.partition("?")[0].split("/")
        if failure.exit_code != Exit.UNKNOWN_NAME or parts[:3] != ["", "v1", "deployments"]:
            return failure
        return failure if len(parts) < 4 else self.suggest(unquote(parts[3]), failure)

    def suggest(self, name: str, failure: Failure) -> Failure:
        """The failure, with the deployments that may have been meant; unless it is another's."""
        from agent.cli.names import deployment_names, hint

        try:
            known = deployment_names(self)
        except Failure:
            return failure
        if name not in known:
            failure.lines = (*failure.lines, *hint(name, known, "deployments"))
        return failure

    def _connection(self) -> http.client.HTTPConnection:
        return self._where.connection(self._timeout_s)


def segment(text: str) -> str:
    """A name as one component of a path. What is no name is for the agent to say."""
    if text in {"", ".", ".."} or len(text) > _LONGEST:
        raise Failure(Exit.UNKNOWN_NAME, f"there is nothing called '{text[:40]}'")
    return quote(text, safe="")


@contextmanager
def _reaching(where: Reach) -> Iterator[None]:
    """What can go wrong between us and the agent, told with what to do about it."""
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        raise where.lost(error) from None


def failure_of(status: int, body: bytes) -> Failure:
    """From the agent's problem details to how the command ends."""
    try:
        problem = msgspec.json.decode(body, type=ProblemDetails)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Failure(Exit.FAILED, f"the agent answered {status} without saying why")
    code = _exit_code(problem)
    failure = _refusal(problem) if code is Exit.REFUSED else Failure(code, problem.detail)
    failure.oldest = None if problem.oldest is msgspec.UNSET else problem.oldest
    failure.problem = problem
    return failure


def _exit_code(problem: ProblemDetails) -> Exit:
    match problem.status:
        case 409:
            return Exit.REFUSED
        case 404 if problem.code != "unknown_path":
            return Exit.UNKNOWN_NAME
        case 400 | 413 | 415:
            return Exit.USAGE
        case 503 if problem.code == "starting":
            return Exit.UNREACHABLE
    return Exit.FAILED


def _refusal(problem: ProblemDetails) -> Failure:
    reasons = problem.reasons or []
    if not reasons:
        return Failure(Exit.REFUSED, f"{problem.code}: {problem.detail}", word="refused")
    lines = [reason_text(reason) for reason in reasons]
    if problem.retry_after_s:
        lines.append(f"try again in {problem.retry_after_s:.0f} s")
    return Failure(Exit.REFUSED, lines[0], lines[1:], word="refused")


def reason_text(reason: ReasonView) -> str:
    """`code: detail`, with the numbers that the detail does not say itself."""
    detail = reason.detail or ""
    said = {int(number) for number in re.findall(r"(?<![\w.])\d{1,18}(?![\w.]*\d)", detail)}
    numbers = [
        f"{word} {value}"
        for word, value in (("needed", reason.needed), ("available", reason.available))
        if value is not msgspec.UNSET and value not in said
    ]
    tail = f" ({', '.join(numbers)})" if numbers else ""
    return f"{reason.code}: {detail}{tail}"
