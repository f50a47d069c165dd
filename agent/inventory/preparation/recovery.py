"""Takes a broken GPU off the bus and has its port look for it anew: by hand, and only so.

    unheld, without a driver ─► intent (durable) ─► drivers_autoprobe 0 ─► remove ─► rescan of the
    port ─► there again? ─► drivers_autoprobe as before ─► intent forgotten ─► judged: dirty, or
    quarantined

Nothing else may be behind the port. `drivers_autoprobe` is the whole bus's, so that one recovery
goes on at a time, and a crash in the middle is finished at the next start. Sources: Linux,
Documentation/ABI/testing/sysfs-bus-pci (`remove`, `rescan`, `drivers_autoprobe`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec

from agent.errors import AgentError, describe
from agent.host.attributes import AttributeWriteError, write_attribute
from agent.host.clock import Clock
from agent.host.commands import RunCommand, run_command
from agent.inventory.port import Chain
from agent.inventory.preparation.card_identity import (
    CardIdentity,
    ReadSpace,
    changes,
    identify,
    read_space,
)
from agent.inventory.preparation.errors import RecoveryError
from agent.inventory.preparation.functions import look
from agent.inventory.preparation.ports import behind, port_above, strangers
from agent.inventory.sysfs import read_int
from agent.model.event import EventDraft
from agent.model.ids import Bdf
from agent.store.port import Store, Transaction

log = logging.getLogger(__name__)

_INTENT = "gpu_recovery"  # a key of the store's meta table
_AUTOPROBE = "bus/pci/drivers_autoprobe"
_REBOOT = "reboot the host, or take the card out of service"


class RecoveryPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is to be done, durable before it is begun. `autoprobe`: as it was found."""

    bdf: Bdf
    port: Bdf
    functions: tuple[Bdf, ...]
    autoprobe: int
    identity: CardIdentity
    boot_id: str


class Recovery:
    """`expecting`: inside, what the kernel says of these is no news. Writes have `deadline_s`."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        sysfs_root: Path = Path("/sys"),
        *,
        expecting: Callable[[Collection[Bdf]], AbstractContextManager[None]],
        deadline_s: float = 20.0,
        back_within_s: float = 10.0,
        run: RunCommand = run_command,
        read_space: ReadSpace = read_space,
    ) -> None:
        self._read_space = read_space
        self._store = store
        self._clock = clock
        self._root = sysfs_root
        self._expecting = expecting
        self._deadline_s = deadline_s
        self._back_within_s = back_within_s
        self._run = run
        self._turn = asyncio.Lock()

    async def plan(self, bdf: Bdf) -> RecoveryPlan:
        """See that it can be taken off the bus alone. Raises RecoveryError; touches nothing."""
        return await asyncio.to_thread(self._plan, bdf)

    def _plan(self, bdf: Bdf) -> RecoveryPlan:
        one = look(self._root, bdf)
        if one is None:
            raise RecoveryError(bdf, "is not on the bus; its port is not known any more", _REBOOT)
        port = port_above(one.path)
        if port is None or not (port / "rescan").exists():
            raise RecoveryError(bdf, "hangs on no port that could look for it anew", _REBOOT)
        others = strangers(self._root, one, port)
        if others:
            raise RecoveryError(
                bdf, f"shares its port with {', '.join(others)}, which would go with it", _REBOOT
            )
        return RecoveryPlan(
            bdf=bdf,
            port=Bdf(port.name),
            functions=behind(port),
            autoprobe=1 if read_int(self._root / _AUTOPROBE) != 0 else 0,
            identity=identify(one.path, self._read_space),
            boot_id=self._clock.now().boot_id,
        )

    async def carry_out(self, plan: RecoveryPlan, tell: Chain) -> tuple[str, ...]:
        """Remove and find again; returns what is wrong with it then. Raises RecoveryError.

        No function behind the port may have a driver any more.
        """
        async with self._turn:
            await self._store.transact(lambda tx: _intend(tx, plan, tell))
            with self._expecting((plan.port, *plan.functions)):
                try:
                    await self._autoprobe(0)
                    for bdf in reversed(plan.functions):  # of a card its function 0 last
                        await self._write(plan, f"bus/pci/devices/{bdf}/remove")
                    return await self._find_again(plan)
                finally:
                    await self._settle(plan)

    async def resume(self) -> tuple[Bdf, str] | None:
        """After a crash: finish what was begun. Returns which card is not as it was, and why."""
        told = await self._store.read(lambda tx: tx.meta(_INTENT))
        plan = msgspec.json.decode(told, type=RecoveryPlan) if told else None
        if plan is None:
            return None
        if plan.boot_id != self._clock.now().boot_id:  # the kernel begins with its own setting
            await self._store.transact(_forget)
            return None
        async with self._turn:
            with self._expecting((plan.port, *plan.functions)):
                try:
                    await self._autoprobe(0)
                    faults = await self._find_again(plan)
                except AgentError as error:
                    faults = (describe(error),)
                with contextlib.suppress(AttributeWriteError):  # told, and tried at the next start
                    await self._settle(plan)
        return (plan.bdf, "; ".join(faults)) if faults else None

    async def _find_again(self, plan: RecoveryPlan) -> tuple[str, ...]:
        await self._write(plan, f"bus/pci/devices/{plan.port}/rescan")
        path = self._root / "bus/pci/devices" / plan.bdf
        until = asyncio.get_running_loop().time() + self._back_within_s
        while not path.exists():
            if asyncio.get_running_loop().time() >= until:
                there = ", ".join(behind(self._root / "bus/pci/devices" / plan.port)) or "nothing"
                detail = f"did not come back: its port {plan.port} finds {there}"
                raise RecoveryError(plan.bdf, detail, _REBOOT)
            await asyncio.sleep(min(0.1, self._back_within_s / 5))
        return changes(plan.identity, await asyncio.to_thread(identify, path, self._read_space))

    async def _settle(self, plan: RecoveryPlan) -> None:
        """The bus is as it was found; only then is nothing left to be done."""
        await self._autoprobe(plan.autoprobe)
        await self._store.transact(_forget)

    async def _autoprobe(self, value: int) -> None:
        path = self._root / _AUTOPROBE
        try:
            await write_attribute(path, f"{value}\n", deadline_s=self._deadline_s, run=self._run)
        except AttributeWriteError:
            log.exception("drivers_autoprobe not written: it is tried again at the next start")
            raise

    async def _write(self, plan: RecoveryPlan, where: str) -> None:
        path = self._root / where
        if where.endswith("/remove") and not path.parent.exists():
            return  # it went with another
        try:
            await write_attribute(path, "1\n", deadline_s=self._deadline_s, run=self._run)
        except AgentError as error:
            raise RecoveryError(plan.bdf, "the kernel did not do it", _REBOOT) from error


def _intend(tx: Transaction, plan: RecoveryPlan, tell: Chain) -> None:
    tx.set_meta(_INTENT, msgspec.json.encode(plan).decode())
    why = f"taken off the bus and looked for by its port {plan.port}"
    tell(tx, EventDraft(kind="gpu", gpu=plan.bdf, to="recovering", reason=why))


def _forget(tx: Transaction) -> None:
    tx.set_meta(_INTENT, "")
