"""What every listener shares: the engine, and the state of the API itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from agent.api.counters import Counters
from agent.api.idempotency import Answers, Idempotency
from agent.api.names import names_of_this_host
from agent.api.page import StatusPage
from agent.api.streams import Streams
from agent.updates.port import Engine
from agent.wire.answers import Checkup
from agent.wire.host_views import CoordinatorView

NO_COORDINATOR = CoordinatorView(
    configured=False,
    connected=False,
    last_report_at=None,
    session_expires_at=None,
    outbox=0,
)


def _alive() -> Sequence[str]:
    return ()


def _no_coordinator() -> CoordinatorView:
    return NO_COORDINATOR


async def _no_doctor() -> Checkup:
    return Checkup(lines=[])


@dataclass(slots=True)
class Surface:
    """One a process.

    `body_key` is secret to this host: bodies may hold secrets, so that what is kept to recognise
    them is keyed. `alive` names the loops that have died. `status_names`: by these alone the
    status port is asked (names.py).
    """

    engine: Engine
    answers: Answers
    body_key: bytes
    alive: Callable[[], Sequence[str]] = _alive
    coordinator: Callable[[], CoordinatorView] = _no_coordinator  # until there is a session
    doctor: Callable[[], Awaitable[Checkup]] = _no_doctor
    status_names: frozenset[str] = field(default_factory=names_of_this_host)
    idempotency: Idempotency = field(init=False)
    page: StatusPage = field(init=False)
    streams: Streams = field(init=False)
    counters: Counters = field(init=False)

    def __post_init__(self) -> None:
        self.idempotency = Idempotency(self.answers, self.body_key)
        self.page = StatusPage(self.engine, self._coordinator_now)
        self.streams = Streams()
        self.counters = Counters()

    def _coordinator_now(self) -> CoordinatorView:
        """It may be given only once the listeners serve."""
        return self.coordinator()
