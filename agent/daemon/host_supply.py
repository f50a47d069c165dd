"""The capacity room's view of the machine, from the inventory and the published enclaves."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from agent.capacity.boards import Board, boards_of
from agent.capacity.groups import NumaDistances
from agent.capacity.supply import HostSupply
from agent.config import ReserveConfig, Tee
from agent.daemon.listen_rules import ReadListenRules, no_listen_rules
from agent.enclaves.port import Enclaves
from agent.inventory.host import HostProbe
from agent.inventory.port import Gpus
from agent.model.ids import EnclaveId
from agent.model.inventory import Inventory, TeeIds
from agent.model.resources import Demand
from agent.store.port import Reader, Store

CONFIDENTIAL = frozenset({Tee.SEV_SNP, Tee.TDX})


class SupplyReader:
    """Reads the host off the event loop; the pids come from what the driver observes."""

    def __init__(
        self,
        probe: HostProbe,
        reserve: ReserveConfig,
        enclaves: Enclaves,
        store: Store,
        gpus: Gpus,
        *,
        group_sizes: Collection[int] | None = None,
        tee: Tee = Tee.NONE,
        listen_rules: ReadListenRules = no_listen_rules,
        listeners_by_name: bool = False,
        default_domain: str | None = None,
        allow_unattested: bool = False,
    ) -> None:
        self._probe = probe
        self._reserve = reserve
        self._enclaves = enclaves
        self._store = store
        self._gpus = gpus
        self._listen_rules = listen_rules
        self._group_sizes = group_sizes
        self._tee = tee
        self._listeners_by_name = listeners_by_name
        self._default_domain = default_domain
        self._allow_unattested = allow_unattested

    async def __call__(self) -> HostSupply:
        """What the host has now. Raises InventoryError."""
        demands = await self._store.read(_demands)
        pids: dict[EnclaveId, int] = {}
        for enclave in demands:
            process = self._enclaves.view(enclave).process
            if process is not None:
                pids[enclave] = process.pid
        seen = await asyncio.to_thread(self._probe.read, pids)
        inventory = self._gpus.inventory
        ids = next((one for one in seen.tee_ids if one.kind == self._tee), None)
        charged = sum(demands[enclave].tee_ids for enclave in pids)
        total, elsewhere = _tee_ids(ids, charged)
        return HostSupply(
            memory_mib=seen.memory_mib,
            mem_available_mib=seen.mem_available_mib,
            vcpus=seen.vcpus,
            addresses=tuple(self._enclaves.addresses()),
            disk_free_mib=seen.disk_free_mib,
            reserve_memory_mib=self._reserve.memory_mib,
            reserve_vcpus=self._reserve.vcpus,
            resident_mib=seen.resident_mib,
            tee_ids=max(0, total - elsewhere),
            tee_ids_elsewhere=elsewhere,
            tee_ids_each=0 if ids is None else 1,
            foreign_listeners=seen.foreign_listeners,
            programs=seen.programs,
            listen_rules=await self._listen_rules(seen.addresses),
            listeners_by_name=self._listeners_by_name,
            evidence_demanded=self._tee is not Tee.NONE,
            allow_unattested=self._allow_unattested,
            default_domain=self._default_domain,
            boards=self._boards(inventory),
            numa_distances=_distances(inventory),
            inventory_complete=inventory is not None and inventory.complete,
        )

    def _boards(self, inventory: Inventory | None) -> tuple[Board, ...]:
        if inventory is None:
            return ()
        devices = (*inventory.gpus, *inventory.switches)
        return boards_of(devices, sizes=self._group_sizes, confidential=self._tee in CONFIDENTIAL)


def _demands(tx: Reader) -> dict[EnclaveId, Demand]:
    """What each enclave took, as it was recorded."""
    found = {}
    for row in tx.enclaves():
        revision = tx.revision(row.deployment, row.revision)
        bare = Demand(memory_mib=row.memory_mib, vcpus=row.vcpus)
        found[row.id] = revision.demand if revision else bare
    return found


def _tee_ids(ids: TeeIds | None, charged: int) -> tuple[int, int]:
    """All that the host has, and what of them others use: beyond what our running VMs are charged.

    A VM that is still ending counts as another's: its id comes back when it is gone.
    """
    if ids is None or ids.total is None:
        return 0, 0
    return ids.total, max(0, (ids.used or 0) - charged)


def _distances(inventory: Inventory | None) -> NumaDistances:
    """The kernel's table, a row a node; nodes that are not there have an empty row."""
    nodes = {node.node: node.distances for node in inventory.host.numa_nodes} if inventory else {}
    return tuple(nodes.get(number, ()) for number in range(max(nodes, default=-1) + 1))
