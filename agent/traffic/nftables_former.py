"""Tables that this agent made under an earlier configuration, which named them otherwise.

Every name is recorded before a table has it, so that it is known as ours whenever it shows up
again: after a crash in the middle of a move, or in a ruleset that somebody saved and restored.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import msgspec

from agent.host.commands import RunCommand
from agent.host.files import FileAbsentError, StorageError, read_bounded, write_atomic
from agent.model.ids import DeploymentName
from agent.traffic.nftables_kernel import (
    NftablesKernel,
    bridge_of,
    egress_table,
    is_agents,
    limits_table,
)
from agent.traffic.nftables_rules import Base
from agent.traffic.port import RouteOrder, TrafficError
from agent.traffic.uplinks import is_link

log = logging.getLogger(__name__)

_MAX_BYTES = 1 << 16


async def none_known() -> Sequence[str]:
    """Where there was never another configuration."""
    return ()


class FormerTables:
    """`table` is the one in use, None if none is any more; `names` tells what others may be
    called besides those recorded. Raises TrafficError.
    """

    def __init__(
        self,
        table: str | None,
        record: Path,
        names: Callable[[], Awaitable[Sequence[str]]],
        run: RunCommand,
    ) -> None:
        self._table = table
        self._record = record
        self._names = names
        self._run = run

    async def note(self) -> None:
        """Record the name in use, and what is known of others."""
        recorded = self._recorded()
        used = [self._table] if self._table is not None else []
        names = list(dict.fromkeys([*recorded, *await self._names(), *used]))
        if names != recorded:
            try:
                write_atomic(self._record, msgspec.json.encode(names))
            except StorageError as error:
                raise TrafficError("the names of our tables cannot be recorded") from error

    def forget(self) -> None:
        """They are all gone."""
        self._record.unlink(missing_ok=True)

    def _recorded(self) -> list[str]:
        try:
            return msgspec.json.decode(read_bounded(self._record, _MAX_BYTES), type=list[str])
        except FileAbsentError:
            return []
        except (msgspec.MsgspecError, StorageError) as error:
            raise TrafficError(f"{self._record} is not a record of tables: remove it") from error

    async def orders(self) -> dict[DeploymentName, RouteOrder]:
        """What is in force in them."""
        found: dict[DeploymentName, RouteOrder] = {}
        for name in await self._here():
            found |= (await NftablesKernel(_base(name), self._run).look()).known
        return found

    async def remove(self) -> list[str]:
        """Returns which were there. Their connections go on: the kernel remembers each."""
        here = await self._here()
        for name in here:
            beside = (egress_table(name), limits_table(name))
            text = "".join(f"add table inet {one}\ndelete table inet {one}\n" for one in beside)
            await NftablesKernel(_base(name), self._run).commit(_base(name).removal() + text)
            log.info("table of an earlier configuration removed", extra={"table": name})
        return here

    async def _here(self) -> list[str]:
        """Not one whose bridge is another agent's by now: it took over the name."""
        names = [name for name in self._recorded() if name != self._table and is_agents(name)]
        if not names:
            return []
        here = await NftablesKernel(_base(names[0]), self._run).tables()
        found = [name for name in names if name in here]
        if not found:
            return []
        ours = await self._names()
        return [name for name in found if name in ours or not is_link(bridge_of(name))]


def _base(table: str) -> Base:
    """Of which nothing counts but the name."""
    return Base(table=table, bridge="none", subnet="192.0.2.0/30")
