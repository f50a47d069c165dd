"""Who has to leave when there are too many: at the door, and of those that are in."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.api.peers import Peers
from agent.api.roles import Role
from agent.door.crowd import EvictingQueue
from agent.pki.keeper import FleetCertificates
from agent.pki.names import coordinator_uri, observer_uri
from agent.pki.peer import Peer
from tests.fakes.fleet import DOMAIN, HOST, NotedProblems, Pki


@given(st.lists(st.sampled_from("abcde"), max_size=60))
def test_a_newcomer_gets_in_and_whoever_has_most_makes_room(addresses: list[str]) -> None:
    queue: EvictingQueue[int] = EvictingQueue(8, 3)
    inside: list[tuple[str, int]] = []  # oldest first
    for number, address in enumerate(addresses):
        inside.append((address, number))
        out = queue.enter(address, number)
        if out is not None:
            (gone,) = (one for one in inside if one[1] == out)
            held = [n for where, n in inside if where == gone[0]]
            most = max(sum(where == a for where, _ in inside) for a in "abcde")
            assert out == held[0]  # its oldest
            assert len(held) in (most, 4)
            inside.remove(gone)
        assert (address, number) in inside
        assert len(queue) == len(inside) <= 8
        assert all(sum(where == a for where, _ in inside) <= 3 for a in "abcde")
    for address, number in inside:
        queue.leave(address, number)
        queue.leave(address, number)
    assert len(queue) == 0


@dataclass(eq=False)
class Connection:
    """Stands for `agent.api.connection.PeerConnection`."""

    role: Role
    peer: Peer
    lost: Callable[[Connection], None]
    reasons: list[str] = field(default_factory=list)

    def drop(self, reason: str) -> None:
        self.reasons.append(reason)
        self.lost(self)


def peer(uri: str, number: int = 0, **changes: object) -> Peer:
    later = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
    told = {"mark": bytes([number]), "issuer": "i", "serial": f"{number:x}", "until": later}
    return Peer(uri=uri, **(told | changes))  # type: ignore[arg-type]


OBSERVER = observer_uri(DOMAIN)


@pytest.fixture
async def trust(tmp_path: Path) -> FleetCertificates:
    made = FleetCertificates(Pki(tmp_path / "pki").tls(), HOST, NotedProblems())
    await made.look()
    return made


def peers_of(trust: FleetCertificates, **limits: int) -> Peers:
    return Peers(trust, Connection, **limits)  # type: ignore[arg-type]


async def test_one_certificate_takes_no_more_than_its_share(trust: FleetCertificates) -> None:
    peers = peers_of(trust, max_open=5, max_open_per_certificate=2)
    first = peers.enter(peer(OBSERVER))
    assert first is not None
    assert peers.enter(peer(OBSERVER)) is not None
    assert peers.enter(peer(OBSERVER)) is None
    other = peers.enter(peer(coordinator_uri(DOMAIN), 1))
    assert other is not None
    assert other.role is Role.COORDINATOR  # type: ignore[attr-defined]
    first.drop("it went")
    assert peers.enter(peer(OBSERVER)) is not None
    for number in range(2, 9):
        peers.enter(peer(OBSERVER, number))
    assert len(peers) == 5


async def test_who_may_not_stay_is_closed_and_nobody_else(trust: FleetCertificates) -> None:
    peers = peers_of(trust)
    past = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=1)
    revoked = peers.enter(peer(OBSERVER, 0xAB))
    ended = peers.enter(peer(OBSERVER, 2, until=past))
    stays = peers.enter(peer(OBSERVER, 3))
    assert revoked
    assert ended
    assert stays
    assert trust.material is not None
    put = {"i": frozenset({"ab"}), "another": frozenset({"3"})}
    facts = msgspec.structs.replace(trust.material.facts, revoked=put)
    trust.material = type(trust.material)(trust.material.server, trust.material.client, facts)
    peers.look()
    assert revoked.reasons == ["its certificate was revoked"]  # type: ignore[attr-defined]
    assert ended.reasons == ["its certificate has expired"]  # type: ignore[attr-defined]
    assert stays.reasons == []  # type: ignore[attr-defined]
    more = msgspec.structs.replace(facts, authorities=facts.authorities | {"another"})
    trust.material = type(trust.material)(trust.material.server, trust.material.client, more)
    peers.look()
    assert stays.reasons == []  # type: ignore[attr-defined]
    less = msgspec.structs.replace(facts, authorities=frozenset({"another"}))
    trust.material = type(trust.material)(trust.material.server, trust.material.client, less)
    peers.look()
    assert stays.reasons == ["an authority is not trusted any more"]  # type: ignore[attr-defined]
    assert len(peers) == 0
