"""Whatever is admitted again is asked for its signature again, warm or cold."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from agent.capacity.supply import HostSupply
from agent.model.update import Step, Update, UpdateStatus
from agent.releases.port import ReleaseSourceError
from agent.releases.signature import SignatureRequiredError
from agent.updates.engine.commands import UpdateEngine
from agent.updates.errors import RefusedError
from simulator.simulated_host import CALLER, NAME, SimulatedHost, release
from tests.fakes.leasing import TaggedReleases

Request = Callable[[UpdateEngine], Coroutine[Any, Any, Update]]


class SignedReleases(TaggedReleases):
    """`unsigned`: the tags without a signature; `offline`: whether the source is away."""

    def __init__(self, *unsigned: str) -> None:
        self.unsigned = unsigned
        self.offline = False
        self.asked: list[tuple[str, str, str]] = []

    async def require_signed(self, repo: str, tag: str, digest: str) -> None:
        self.asked.append((repo, tag, digest))
        if self.offline:
            raise ReleaseSourceError("the source does not answer")
        if tag in self.unsigned:
            raise SignatureRequiredError(f"{repo} {tag} is not signed")


@pytest.fixture
def host() -> Iterator[SimulatedHost]:
    host = SimulatedHost()
    yield host
    host.close()


def engine(host: SimulatedHost, releases: SignedReleases) -> UpdateEngine:
    async def supply() -> HostSupply:
        return host.supply()

    async def refresh(_: object) -> None: ...

    secret_values = SimpleNamespace(missing=lambda *_: ())
    parts = SimpleNamespace(
        store=host.store,
        releases=releases,
        clock=host.clock,
        gpus=None,
        preparation=None,
        secret_values=secret_values,
    )
    runtime: Any = SimpleNamespace(
        parts=parts,
        publisher=SimpleNamespace(changed=None),
        leases=None,
        supply=supply,
        refresh=refresh,
        is_well=lambda _: True,
    )
    return UpdateEngine(runtime)


def back(to: str | None = None) -> Request:
    return lambda asked: asked.rollback(NAME, to, CALLER)


def updates(host: SimulatedHost) -> list[Update]:
    return host.read(lambda tx: tx.updates(NAME))


def require_refused(host: SimulatedHost, request: Request, tag: str) -> None:
    """Refused for want of a signature, asked of that very release; no row is another."""
    before, releases = updates(host), SignedReleases(tag)
    with pytest.raises(RefusedError) as refused:
        host.loop.run_until_complete(request(engine(host, releases)))
    (reason,) = refused.value.decision.reasons
    assert reason.code == "signature_required"
    assert tag in reason.detail
    assert releases.asked == [("hello", tag, release(tag).digest)]
    assert updates(host) == before


def test_a_rollback_to_a_revision_without_a_signature_is_refused(host: SimulatedHost) -> None:
    host.serve("v1")
    host.serve("v2")
    require_refused(host, back(), "v1")
    require_refused(host, back("v1"), "v1")
    assert host.serving_tag() == "v2"


def test_a_rollback_to_one_that_is_still_warm_is_refused_as_well(host: SimulatedHost) -> None:
    host.serve("v1")
    host.request("v2")
    host.until(Step.SOAK)
    require_refused(host, back(), "v1")
    host.settle()
    assert host.serving_tag() == "v2"
    assert host.current().status is UpdateStatus.COMPLETED


def test_a_rollback_to_a_signed_revision_goes_as_ever(host: SimulatedHost) -> None:
    host.serve("v1")
    host.serve("v2")
    releases = SignedReleases("v2")
    update = host.loop.run_until_complete(engine(host, releases).rollback(NAME, None, CALLER))
    assert (update.tag, releases.asked[0][1]) == ("v1", "v1")
    host.settle()
    assert host.serving_tag() == "v1"


def test_a_retry_without_a_signature_is_refused(host: SimulatedHost) -> None:
    host.serve("v1")
    host.sick_tags.add("v2")
    host.request("v2")
    host.settle()
    assert host.current().status is UpdateStatus.FAILED
    require_refused(host, lambda asked: asked.retry(NAME, CALLER), "v2")


def test_a_start_without_a_signature_is_refused(host: SimulatedHost) -> None:
    host.serve("v1")
    host.loop.run_until_complete(engine(host, SignedReleases()).stop(NAME, CALLER))
    host.settle()
    require_refused(host, lambda asked: asked.start(NAME, CALLER), "v1")


def test_a_signature_that_nobody_can_be_asked_for_refuses_nothing_for_good(
    host: SimulatedHost,
) -> None:
    """It is no verdict: the caller is told to come again, and nothing is begun."""
    host.serve("v1")
    host.serve("v2")
    releases, before = SignedReleases(), updates(host)
    releases.offline = True
    with pytest.raises(ReleaseSourceError):
        host.loop.run_until_complete(engine(host, releases).rollback(NAME, None, CALLER))
    assert updates(host) == before
    releases.offline = False
    host.loop.run_until_complete(engine(host, releases).rollback(NAME, None, CALLER))
    assert len(updates(host)) == len(before) + 1
