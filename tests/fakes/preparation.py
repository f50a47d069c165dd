"""A preparer on a host of a tree and a simulated kernel, as often restarted as a test likes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from agent.inventory.preparation.device_ops import DeviceOps
from agent.inventory.preparation.modes import ModeTool
from agent.inventory.preparation.preparer import Preparer
from agent.inventory.preparation.records import DevicePlace, count_launch, mark_used
from agent.inventory.preparation.recovery import Recovery
from agent.model.event import Event
from agent.model.ids import Bdf, EnclaveId
from agent.model.lease import Claim, ClaimKind
from agent.model.preparation import GpuCondition
from agent.store.port import Reader, Store, Transaction
from simulator.manual_clock import ManualClock
from simulator.memory_store import MemoryStore
from simulator.pci_kernel import PciKernel
from simulator.sysfs_tree import SysfsTree

T = TypeVar("T")
ENCLAVE = EnclaveId("aaaaaaaa")


@dataclass
class CuttingStore:
    """Tells before each transaction, so that the agent can be killed there."""

    inner: Store
    before: Callable[[], None] = lambda: None

    async def read(self, work: Callable[[Reader], T]) -> T:
        return await self.inner.read(work)

    async def transact(self, work: Callable[[Transaction], T]) -> T:
        self.before()
        return await self.inner.transact(work)

    async def close(self) -> None:
        await self.inner.close()


@dataclass
class GpuHost:
    """What survives the agent: devices, kernel, store; `preparer` makes what does not."""

    tree: SysfsTree
    devices: tuple[Bdf, ...]
    proc: Path
    switches: tuple[Bdf, ...] = ()
    one_board: bool = False
    confidential: bool = True
    clock: ManualClock = field(default_factory=ManualClock)
    quarantined: dict[Bdf, str] = field(default_factory=dict)
    expected: list[set[Bdf]] = field(default_factory=list)
    asking: set[Bdf] = field(default_factory=set)  # by their health, for a reset
    budget_s: float = 0.3

    def __post_init__(self) -> None:
        self.kernel = PciKernel(self.tree)
        self.store = CuttingStore(MemoryStore(self.clock.now))
        for bdf in self.all:
            self.kernel.in_mode(bdf)
        self.proc.mkdir(exist_ok=True)

    @property
    def all(self) -> tuple[Bdf, ...]:
        return (*self.devices, *self.switches)

    def preparer(self, **more: object) -> Preparer:
        """A new one, as a restarted agent has."""
        ours = ModeTool("nvidia_gpu_tools.py", run=self.kernel.run, find=str)
        recovery = Recovery(
            self.store,
            self.clock,
            self.tree.root,
            expecting=self.expecting,
            deadline_s=0.5,
            back_within_s=0.05,
            run=self.kernel.run,
        )
        standing = {
            "recovery": recovery,
            "tool": ours,
            "present": lambda: self.all,
            "place_of": self.place,
        }
        parts = {**standing, **more}
        tool = parts.pop("tool")
        return Preparer(
            self.store,
            self.clock,
            self.device_ops(),
            tool if self.confidential else None,  # type: ignore[arg-type]
            quarantine=self.quarantine,
            **parts,  # type: ignore[arg-type]
        )

    def device_ops(self) -> DeviceOps:
        return DeviceOps(
            self.tree.root,
            self.proc,
            write_deadline_s=0.5,
            budget_s=self.budget_s,
            released_within_s=0.05,
            look_every_s=0.005,
            run=self.kernel.run,
        )

    def place(self, bdf: Bdf) -> DevicePlace | None:
        kinds = ("ppcie",) if bdf in self.switches else ("cc",)
        if self.one_board and bdf in self.devices:
            kinds = ("cc", "ppcie")
        board = self.all if self.one_board else (bdf,)
        if bdf not in self.all:
            return None
        return DevicePlace(
            board, kinds, bdf in self.quarantined, asks_for_reset=bdf in self.asking
        )

    @contextlib.contextmanager
    def expecting(self, bdfs: Collection[Bdf]) -> Iterator[None]:
        self.expected.append(set(bdfs))
        yield

    async def quarantine(self, bdf: Bdf, reason: str) -> None:
        self.quarantined[bdf] = reason

    async def claim(self, *devices: Bdf, holder: str = ENCLAVE) -> None:
        def work(tx: Transaction) -> None:
            for bdf in devices:
                tx.claim(Claim(kind=ClaimKind.GPU, key=bdf, holder=holder))

        await self.store.inner.transact(work)

    async def leave(self, *devices: Bdf, holder: str = ENCLAVE) -> None:
        """The enclave that ran on them is gone, and its claims with it."""

        def work(tx: Transaction) -> None:
            mark_used(tx, devices, EnclaveId(holder), self.clock.now())
            tx.release_claims(holder)

        await self.store.inner.transact(work)

    async def abandon(self, holder: str = ENCLAVE) -> None:
        """The claims go, and no VM ever ran."""
        await self.store.inner.transact(lambda tx: tx.release_claims(holder))

    async def launch_failed(self, *devices: Bdf) -> None:
        """A VM of the enclave that has them did not come up."""

        def work(tx: Transaction) -> None:
            mark_used(tx, devices, ENCLAVE, self.clock.now())
            count_launch(tx, devices, failed=True)

        await self.store.inner.transact(work)

    async def events(self) -> list[Event]:
        return await self.store.inner.read(lambda tx: tx.events(0))

    async def rows(self) -> dict[str, GpuCondition]:
        rows = await self.store.inner.read(lambda tx: tx.gpu_conditions())
        return {row.bdf: row for row in rows}

    def hold(self, pid: int, program: str, targets: Sequence[str]) -> None:
        """A process that has these files open."""
        folder = self.proc / str(pid)
        (folder / "fd").mkdir(parents=True)
        (folder / "comm").write_text(f"{program}\n")
        for number, target in enumerate(targets):
            (folder / "fd" / str(number)).symlink_to(target)
