"""Ids for confidential guests, from the misc controller to the decision."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from agent.capacity.supply import HostSupply
from agent.config import ReserveConfig, Tee
from agent.daemon.host_supply import SupplyReader
from agent.inventory.host import HostProbe
from agent.model.ids import EnclaveId
from agent.model.reasons import ReasonCode, Strategy
from agent.model.resources import Demand
from agent.updates.errors import RefusedError
from agent.updates.orders import NewLease
from simulator.fake_gpus import FakeGpus
from simulator.simulated_host import CALLER, NAME, SimulatedHost
from tests.fakes.gpus import inventory
from tests.fakes.leasing import leasing_of


class Misc:
    """A misc controller, and a host whose supply is read through it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.host = SimulatedHost()
        self.running: set[EnclaveId] = set()

    def put(self, capacity: str, current: str) -> None:
        (self.root / "misc.capacity").write_text(f"{capacity}\n")
        (self.root / "misc.current").write_text(f"{current}\n")

    def read(self, tee: Tee = Tee.SEV_SNP) -> HostSupply:
        def view(enclave: EnclaveId) -> SimpleNamespace:
            pid = SimpleNamespace(pid=1) if enclave in self.running else None
            return SimpleNamespace(process=pid)

        gpus = FakeGpus()
        gpus.inventory = inventory()
        reader = SupplyReader(
            HostProbe(self.root, cgroup_root=self.root, vcpus=8),
            ReserveConfig(memory_mib=0, vcpus=0),
            SimpleNamespace(view=view, addresses=self.host.supply().addresses.__iter__),
            self.host.store,
            gpus,
            tee=tee,
            default_domain="enclaves.example",
        )
        return self.host.loop.run_until_complete(reader())


@pytest.fixture
def misc(tmp_path: Path) -> Iterator[Misc]:
    made = Misc(tmp_path)
    yield made
    made.host.close()


@pytest.mark.parametrize(
    ("tee", "expected"),
    [(Tee.SEV_SNP, (9, 1)), (Tee.TDX, (0, 0)), (Tee.SIMULATED, (0, 0)), (Tee.NONE, (0, 0))],
)
def test_ids_are_those_of_the_hosts_own_tee(
    misc: Misc, tee: Tee, expected: tuple[int, int]
) -> None:
    misc.put("sev 50\nsev_es 9", "sev 3\nsev_es 0")
    supply = misc.read(tee)
    assert (supply.tee_ids, supply.tee_ids_each) == expected


def test_a_kernel_that_does_not_count_them_limits_nothing(misc: Misc) -> None:
    supply = misc.read()
    assert (supply.tee_ids, supply.tee_ids_each) == (0, 0)


def test_what_others_use_is_not_ours_and_what_our_vms_use_is_not_taken_off_twice(
    misc: Misc,
) -> None:
    misc.put("sev_es 3", "sev_es 0")
    supply = misc.read()
    misc.host.supply = lambda: supply  # type: ignore[method-assign]
    misc.host.request("v1")
    (row,) = misc.host.read(lambda tx: tx.enclaves())
    (revision,) = misc.host.read(lambda tx: tx.revisions(NAME))
    assert revision.demand.tee_ids == 1
    misc.running.add(row.id)
    misc.put("sev_es 3", "sev_es 2")  # ours and another's
    assert misc.read().tee_ids == 2
    misc.running.clear()  # admitted, and not running yet: both are others'
    assert misc.read().tee_ids == 1


def test_without_an_id_for_a_second_copy_the_first_is_stopped_and_no_lease_is_given(
    misc: Misc,
) -> None:
    misc.put("sev_es 1", "sev_es 0")
    host, supply = misc.host, misc.read()
    ids = {"tee_ids": supply.tee_ids, "tee_ids_each": supply.tee_ids_each}
    everything = msgspec.structs.replace(host.supply(), **ids)
    host.supply = lambda: everything  # type: ignore[method-assign]
    host.serve("v1")
    update = host.request("v2")
    assert update.strategy is Strategy.STOP_THEN_START
    assert [reason.code for reason in update.reasons] == [ReasonCode.TEE_IDS_EXHAUSTED]
    host.settle()
    assert host.serving_tag() == "v2"
    leases = leasing_of(host.clock, host.store, host.supply())
    wanted = NewLease(demand=Demand(memory_mib=256, vcpus=1), ttl_s=60)
    with pytest.raises(RefusedError) as refused:
        host.loop.run_until_complete(leases.grant(wanted, CALLER))
    assert [reason.code for reason in refused.value.reasons] == [ReasonCode.TEE_IDS_EXHAUSTED]


def test_ids_that_others_use_up_are_exhausted_and_the_tee_is_not_called_missing(
    misc: Misc,
) -> None:
    misc.put("sev_es 3", "sev_es 3")
    supply = misc.read()
    assert (supply.tee_ids, supply.tee_ids_elsewhere) == (0, 3)
    leases = leasing_of(misc.host.clock, misc.host.store, supply)
    wanted = NewLease(demand=Demand(memory_mib=256, vcpus=1), ttl_s=60)
    with pytest.raises(RefusedError) as refused:
        misc.host.loop.run_until_complete(leases.grant(wanted, CALLER))
    assert [reason.code for reason in refused.value.reasons] == [ReasonCode.TEE_IDS_EXHAUSTED]


def test_a_lease_holds_an_id_and_says_so(misc: Misc) -> None:
    misc.put("sev_es 1", "sev_es 0")
    host = misc.host
    leases = leasing_of(host.clock, host.store, misc.read())
    wanted = NewLease(demand=Demand(memory_mib=256, vcpus=1), ttl_s=60)
    lease = host.loop.run_until_complete(leases.grant(wanted, CALLER))
    assert lease.demand.tee_ids == 1
    with pytest.raises(RefusedError):
        host.loop.run_until_complete(leases.grant(wanted, CALLER))
