"""The invariants that the planner is tried against do notice a host on which they are broken."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec
import pytest

from agent.enclaves.port import VmPhase
from agent.model.enclave import Enclave, Lifecycle
from agent.model.revision import Route, Wish
from agent.model.update import Decided, Step, Update
from simulator.simulated_host import SimulatedHost, Vm
from tests.fakes.invariants import at_rest, broken


@pytest.fixture
def host() -> Iterator[SimulatedHost]:
    host = SimulatedHost()
    host.serve("v1")
    assert (broken(host), at_rest(host)) == ([], [])
    yield host
    host.close()


def only(host: SimulatedHost) -> Enclave:
    (row,) = host.read(lambda tx: tx.enclaves())
    return row


def put(host: SimulatedHost, row: Enclave, **changes: object) -> None:
    host.transact(lambda tx: tx.put_enclave(msgspec.structs.replace(row, **changes)))


def put_update(host: SimulatedHost, **changes: object) -> None:
    update: Update = host.current()
    host.transact(lambda tx: tx.put_update(msgspec.structs.replace(update, **changes)))


def route_to_nobody(host: SimulatedHost) -> None:
    """Decided and in force."""
    after = msgspec.structs.replace(
        host.deployment(), route=Route(generation=99, enclave=None), relaunches=(host.clock.now(),)
    )
    host.transact(lambda tx: tx.put_deployment(after))
    host.data_plane = (99, None)


def test_a_blue_green_that_refuses(host: SimulatedHost) -> None:
    host.request("v2")
    host.until(Step.VERIFY)
    assert broken(host) == []
    route_to_nobody(host)
    assert broken(host) == ["a blue_green refuses connections on purpose"]


def test_traffic_in_force_that_reaches_nobody(host: SimulatedHost) -> None:
    host.data_plane = (0, only(host).id)
    assert broken(host) == []
    row = only(host)
    put(host, row, lifecycle=Lifecycle.STOPPING)
    assert "which is stopping" in " ".join(broken(host))
    put(host, row)
    host.vms[row.id].phase = VmPhase.EXITED
    assert "whose VM was stopped" in " ".join(broken(host))
    host.data_plane = (0, row.id.replace(row.id[0], "x"))  # type: ignore[assignment]
    assert "not recorded" in " ".join(broken(host))


@pytest.mark.parametrize(
    "changes",
    [
        {"decided": Decided.UNDECIDED},
        {"decided": Decided.SWITCH},
        {"finished_at": None},
        {"decided": Decided.FAIL},
    ],
    ids=lambda changes: next(iter(changes.items()))[0],
)
def test_an_update_that_is_over_and_does_not_say_how(
    host: SimulatedHost, changes: dict[str, object]
) -> None:
    put_update(host, **changes)
    assert len(broken(host)) == 1


def test_a_cancel_that_stopped_something(host: SimulatedHost) -> None:
    put_update(host, decided=Decided.CANCEL, old_stopped_at=host.clock.now())
    assert "after the old one was stopped" in " ".join(broken(host))


def stops_for_ever(host: SimulatedHost) -> None:
    route_to_nobody(host)
    put(host, only(host), lifecycle=Lifecycle.STOPPING)


def serves_nobody(host: SimulatedHost) -> None:
    route_to_nobody(host)


def is_forgotten(host: SimulatedHost) -> None:
    route_to_nobody(host)
    host.vms.clear()
    row = only(host)
    host.transact(lambda tx: tx.delete_enclave(row.id))


def runs_though_stopped(host: SimulatedHost) -> None:
    after = msgspec.structs.replace(host.deployment(), wish=Wish.STOP)
    host.transact(lambda tx: tx.put_deployment(after))


def runs_twice(host: SimulatedHost) -> None:
    row = only(host)
    other = msgspec.structs.replace(row, id=type(row.id)("another1"), address="10.9.0.9")
    put(host, other)
    host.vms[other.id] = Vm(launch_uuid=other.launch_uuid)


@pytest.mark.parametrize(
    "happen", [stops_for_ever, serves_nobody, is_forgotten, runs_though_stopped, runs_twice]
)
def test_what_is_never_at_rest(
    host: SimulatedHost, happen: Callable[[SimulatedHost], None]
) -> None:
    happen(host)
    assert at_rest(host) != []
