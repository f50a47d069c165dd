"""A guest's metrics: with its key only where evidence bound it, and told why there are none.

The public guest compares `Authorization: Bearer <METRICS_API_KEY>` and answers 401 `Unauthorized`
as text where it is not that (its packages `auth` and `metrics`).
"""

from __future__ import annotations

import pytest

from agent.probes.guest_metrics import MetricsAccess
from agent.probes.round import RoundResult, run_round
from tests.fakes.tls_guest import METRICS, TlsGuest, identity, reply
from tests.probes.test_rounds import order, running, target

TOKEN = "s3cret-token"
UNAUTHORIZED = reply(401, b"Unauthorized\n")


async def ask(guest: TlsGuest, access: MetricsAccess | None) -> RoundResult:
    async with running(guest) as endpoint:
        wanted = target(endpoint, metrics_access=access)
        return await run_round(wanted, order(with_metrics=True))


def sent(guest: TlsGuest) -> bool:
    return any(b"authorization" in head.lower() for head in guest.heads.values())


async def test_the_key_goes_as_a_bearer_token_to_the_tls_key_that_evidence_bound() -> None:
    guest = TlsGuest()
    access = MetricsAccess(token=TOKEN, bound_key=guest.identity.spki_sha256)
    result = await ask(guest, access)
    assert result.metrics == {"cpu_util": 3}
    assert f"\r\nAuthorization: Bearer {TOKEN}\r\n".encode() in guest.heads[METRICS]
    others = [head for path, head in guest.heads.items() if path != METRICS]
    assert not any(TOKEN.encode() in head for head in others)


@pytest.mark.parametrize("bound", [None, "0" * 64], ids=["nothing bound", "another key"])
async def test_nobody_else_is_sent_it(bound: str | None) -> None:
    guest = TlsGuest()
    guest.answers[METRICS] = UNAUTHORIZED
    result = await ask(guest, MetricsAccess(token=TOKEN, bound_key=bound))
    assert not sent(guest)
    assert result.metrics is not None
    assert "401" in result.metrics["error"]


async def test_one_that_shows_another_key_when_it_is_called_again_is_not_sent_it() -> None:
    """The connection is the guest's to close: what answers the next one may be somebody else."""
    guest = TlsGuest()
    bound = MetricsAccess(token=TOKEN, bound_key=guest.identity.spki_sha256)
    impostor = TlsGuest(identity("impostor"))
    async with running(impostor) as endpoint:
        wanted = target(endpoint, metrics_access=bound)
        await run_round(wanted, order(with_metrics=True))
    assert METRICS in impostor.heads
    assert not sent(impostor)


@pytest.mark.parametrize(
    ("access", "told"),
    [
        (None, "give the deployment a secret of that name"),
        (MetricsAccess(token=TOKEN), "only over a TLS key that evidence has bound"),
    ],
)
async def test_why_there_are_none_is_told(access: MetricsAccess | None, told: str) -> None:
    guest = TlsGuest()
    guest.answers[METRICS] = UNAUTHORIZED
    result = await ask(guest, access)
    assert result.metrics is not None
    assert told in result.metrics["error"]
    assert [o.passed for o in result.observations] == [True] * 3  # it is no health check


async def test_a_key_that_the_guest_does_not_take_is_told_without_it() -> None:
    guest = TlsGuest()
    guest.answers[METRICS] = UNAUTHORIZED
    access = MetricsAccess(token=TOKEN, bound_key=guest.identity.spki_sha256)
    result = await ask(guest, access)
    assert sent(guest)
    assert result.metrics is not None
    assert "does not take" in result.metrics["error"]
    assert TOKEN not in str(result)


@pytest.mark.parametrize("status", [404, 500, 503])
async def test_an_image_without_metrics_is_of_no_interest(status: int) -> None:
    guest = TlsGuest()
    guest.answers[METRICS] = reply(status, b"no")
    assert (await ask(guest, None)).metrics is None


def test_a_token_is_never_shown() -> None:
    access = MetricsAccess(token=TOKEN, bound_key="k")
    assert TOKEN not in repr(access)
    assert TOKEN not in f"{access}"


@pytest.mark.parametrize("token", ["a\r\nX: y", "a\nb", "caf\u00e9", "a\0b"])
def test_a_token_that_is_no_header_is_not_sent(token: str) -> None:
    assert MetricsAccess(token=token, bound_key="k").bearer_for("k") is None
