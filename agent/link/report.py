"""Makes reports: the whole state as it is published, and the events that wait."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from agent.link.numbers import Numbers
from agent.link.outbox import Outbox
from agent.updates.snapshot.snapshot import Snapshot
from agent.wire.gpu_views import InventoryView
from agent.wire.report import PROTOCOL, Report, ReportAnswer, ReportedHost, ReportedState

_encode = msgspec.json.Encoder().encode
# an idle GPU lowers the speed of its link
_MEASURED = ("temperature_c", "power_w", "utilization_percent", "link", "processes")


@dataclass(frozen=True, slots=True)
class Made:
    """One report, and what is to be remembered if it is answered."""

    body: bytes
    state: bytes
    inventory_digest: str | None
    with_inventory: bool
    through: int  # the sequence up to which events are told


class Reports:
    """What was told last is remembered, so that nothing is told twice for no reason."""

    def __init__(
        self,
        snapshot: Callable[[], Snapshot],
        state_of: Callable[[Snapshot], ReportedState],
        inventory: Callable[[], InventoryView | None],
        outbox: Outbox,
        numbers: Numbers,
    ) -> None:
        self._snapshot = snapshot
        self._state_of = state_of
        self._inventory = inventory
        self._outbox = outbox
        self._numbers = numbers
        self._told: bytes | None = None
        self._told_inventory: str | None = None
        self._wanted = False
        self._told_through = 0
        self._taken = True

    async def make(self, rpc_url: str | None) -> Made:
        """The report on this moment."""
        snapshot = self._snapshot()
        state, inventory = self._state_of(snapshot), self._inventory()
        digest = None if inventory is None else inventory_digest(inventory)
        news = inventory is not None and digest != self._told_inventory
        page = await self._outbox.page()
        report = Report(
            protocol=PROTOCOL,
            host=reported_host(snapshot, rpc_url),
            sequence=await self._numbers.take(),
            inventory_digest=digest,
            inventory=inventory if inventory is not None and news else msgspec.UNSET,
            capacity=state.capacity,
            deployments=state.deployments,
            events=list(page.events),
        )
        return Made(_encode(report), _encode(state), digest, news, page.through)

    def told(self, made: Made, answer: ReportAnswer) -> None:
        """It was answered. Events that were not taken are told again at the next interval."""
        self._told = made.state
        # one that asks again although it came with this report gets it at the next interval
        self._wanted = answer.send_inventory and not made.with_inventory
        self._told_inventory = None if answer.send_inventory else made.inventory_digest
        self._told_through = made.through
        self._taken = answer.events_acknowledged >= made.through

    async def news(self) -> bool:
        """Whether there is something to tell that was not told."""
        if self._wanted and self._inventory() is not None:
            return True
        if _encode(self._state_of(self._snapshot())) != self._told:
            return True
        return self._taken and await self._outbox.newest() > self._told_through


def reported_host(snapshot: Snapshot, rpc_url: str | None) -> ReportedHost:
    """This host, as every message to the coordinator says it."""
    host = snapshot.host
    return ReportedHost(
        id=host.id,
        agent_version=host.agent_version,
        tee=host.tee.value,
        rpc_url=rpc_url,
        boot_id=host.started_at.boot_id,
    )


def inventory_digest(inventory: InventoryView) -> str:
    """SHA-256 (hex) over its canonical JSON (sorted keys, no spaces) without what is measured.

    Left out: `observed_at`, free memory and disk, and of each GPU what changes by itself.
    """
    members = msgspec.to_builtins(inventory)
    del members["observed_at"], members["host"]["mem_available_mib"]
    del members["host"]["disk_free_mib"]
    for gpu in (*members["gpus"], *members["switches"]):
        for name in _MEASURED:
            del gpu[name]
    text = json.dumps(members, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
