"""HTTP over the agent's unix socket, with the standard library: it is loaded in a moment.

Every failure becomes a `Failure` with the exit code that the command line promises.
"""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import msgspec

from agent.cli.exits import Exit, Failure
from agent.wire.answers import ProblemDetails
from agent.wire.views import ReasonView

T = TypeVar("T")
TIMEOUT_S = 60.0
_LONGEST = 512


class Client:
    """Asks the agent; a connection a question."""

    def __init__(self, path: Path, timeout_s: float = TIMEOUT_S) -> None:
        self._path = path
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

    @contextmanager
    def stream(self, path: str, last_event_id: int) -> Iterator[Iterator[bytes]]:
        """The lines of a stream of server-sent events. A broken one raises Failure UNREACHABLE."""
        connection = self._connection()
        try:
            with _reaching(self._path):
                connection.request("GET", path, headers={"Last-Event-ID": str(last_event_id)})
                answer = connection.getresponse()
                if answer.status != 200:
                    raise failure_of(answer.status, answer.read())
            yield self._lines(answer)
        finally:
            connection.close()

    def _lines(self, answer: http.client.HTTPResponse) -> Iterator[bytes]:
        while True:
            with _reaching(self._path):
                line = answer.readline()
            if not line:
                raise Failure(Exit.UNREACHABLE, "the agent closed the stream")
            yield line.rstrip(b"\r\n")

    def _ask(self, method: str, path: str, data: bytes | None) -> bytes:
        connection = self._connection()
        headers = {"Content-Type": "application/json"} if data else {}
        try:
            with _reaching(self._path):
                connection.request(method, path, body=data, headers=headers)
                answer = connection.getresponse()
                body = answer.read()
        finally:
            connection.close()
        if answer.status >= 400:
            raise failure_of(answer.status, body)
        return body

    def _connection(self) -> _UnixConnection:
        return _UnixConnection(self._path, self._timeout_s)


def segment(text: str) -> str:
    """A name as one component of a path. What is no name is for the agent to say."""
    if text in {"", ".", ".."} or len(text) > _LONGEST:
        raise Failure(Exit.UNKNOWN_NAME, f"there is nothing called '{text[:40]}'")
    return quote(text, safe="")


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


@contextmanager
def _reaching(path: Path) -> Iterator[None]:
    """What can go wrong between us and the agent, told with what to do about it."""
    try:
        yield
    except (FileNotFoundError, ConnectionRefusedError):
        raise Failure(
            Exit.UNREACHABLE,
            f"no agent listens on {path}",
            ["is it running? systemctl status enclave-agent, or: enclave-agent run"],
        ) from None
    except PermissionError:
        raise Failure(
            Exit.UNREACHABLE,
            f"you may not use {path}",
            ["run this as root, or join the group enclave-agent"],
        ) from None
    except TimeoutError:
        raise Failure(Exit.UNREACHABLE, f"the agent on {path} does not answer") from None
    except (OSError, http.client.HTTPException) as error:
        text = str(error) or type(error).__name__
        raise Failure(Exit.UNREACHABLE, f"the connection to {path} broke: {text}") from None


def failure_of(status: int, body: bytes) -> Failure:
    """From the agent's problem details to how the command ends."""
    try:
        problem = msgspec.json.decode(body, type=ProblemDetails)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Failure(Exit.FAILED, f"the agent answered {status} without saying why")
    code = _exit_code(problem)
    if code is Exit.REFUSED:
        return _refusal(problem)
    failure = Failure(code, problem.detail)
    failure.oldest = None if problem.oldest is msgspec.UNSET else problem.oldest
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
    """`code: detail`, with the numbers where there are some."""
    numbers = [
        f"{word} {value}"
        for word, value in (("needed", reason.needed), ("available", reason.available))
        if value is not msgspec.UNSET
    ]
    tail = f" ({', '.join(numbers)})" if numbers else ""
    return f"{reason.code}: {reason.detail}{tail}"
