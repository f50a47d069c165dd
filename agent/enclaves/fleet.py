"""All enclaves of this host: a driver each, over one network, one supervisor, one proof of KVM."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from agent.config import Accel, Tee
from agent.enclaves.accel import AccelProof, AccelVerdict
from agent.enclaves.caging import Caging
from agent.enclaves.console import ConsoleLog
from agent.enclaves.driver import Driver, DriverResources
from agent.enclaves.ended_consoles import EndedConsoles
from agent.enclaves.hardware import Hardware
from agent.enclaves.launcher import Launcher
from agent.enclaves.network import Network, NetworkError
from agent.enclaves.port import (
    ABSENT,
    LaunchCheck,
    LaunchOrder,
    RestoredOrphan,
    SecureProcessor,
    ServesBooted,
    VmView,
)
from agent.enclaves.qemu_probe import QemuProbe
from agent.enclaves.rundir import RunDir
from agent.enclaves.spec import QuoteService
from agent.enclaves.supervisor import Supervisor
from agent.errors import describe
from agent.host.files import make_private_directory, storage_errors
from agent.host.process import find_by_option, identify
from agent.host.threads import finish_in_thread
from agent.host.wake import KeyedWake
from agent.model.enclave import Enclave, Endpoint, ProcessIdentity
from agent.model.ended_console import EndedConsole
from agent.model.gpu import Gpu
from agent.model.ids import Bdf, DeploymentName, EnclaveId
from agent.model.power_button import Press
from agent.model.revision import Revision

log = logging.getLogger(__name__)

_WATCH_AGAIN_S = 1.0
_ENCLAVE_ID = re.compile(r"[a-z2-7]{8}")


class Fleet:
    """Implements the port `Enclaves`. `tee` is what new VMs have; what runs stays as it is."""

    def __init__(
        self,
        *,
        run_dir: Path,
        state_dir: Path,
        binary: str,
        user: str | None,
        accel: Accel,
        network: Network,
        supervisor: Supervisor,
        tee: Tee = Tee.NONE,
        check_launch: LaunchCheck | None = None,
        processor: SecureProcessor | None = None,
        device_of: Callable[[Bdf], Gpu | None] = lambda _: None,
        quotes: QuoteService | None = None,
        tdx_firmware: Path | None = None,
        cpu_model: str = "",
        caging: Caging | None = None,
    ) -> None:
        self.changed = KeyedWake[EnclaveId]()
        self.accel_verdict: AccelVerdict | None = None
        self._run_dir = run_dir
        self._consoles = state_dir / "consoles"
        self._ended = EndedConsoles(state_dir)
        self._network = network
        # Where units have users of their own, we may be allowed to become nobody: tried as we are.
        trial_user = None if supervisor.kind == "systemd" else user
        self._proof = AccelProof(
            wanted=accel, binary=binary, user=trial_user, state_dir=state_dir, run_dir=run_dir
        )
        self._proving: asyncio.Task[AccelVerdict] | None = None
        self.qemu = QemuProbe(
            binary=binary,
            user=user,
            state_dir=state_dir,
            run_dir=run_dir,
            sev=tee is Tee.SEV_SNP,
        )
        launcher = Launcher(
            binary=binary,
            user=user,
            network=network,
            supervisor=supervisor,
            verdict=self._verdict,
            hardware=Hardware(
                tee,
                self.qemu,
                device_of=device_of,
                quotes=quotes,
                firmware=tdx_firmware,
                cpu_model=cpu_model,
            ),
            check_launch=check_launch,
            caging=caging,
        )
        self._resources = DriverResources(
            launcher=launcher, network=network, supervisor=supervisor, processor=processor
        )
        self._watching: asyncio.Task[None] | None = None
        self._drivers: dict[EnclaveId, Driver] = {}
        self._spared: dict[EnclaveId, str | None] = {}

    @property
    def accel(self) -> str | None:
        return self.accel_verdict.value if self.accel_verdict else None

    async def start(self) -> None:
        """Raises NetworkError, StorageError."""
        with storage_errors("make", self._run_dir):
            self._run_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        make_private_directory(self._consoles)
        self._begin_proof()
        await self._network.start()
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch_network(), name="watch network")

    async def _watch_network(self) -> None:
        """The supervisor of the network's watch: what it cannot put back is tried again."""
        told: str | None = None
        while True:
            try:
                await self._network.watch()
            except NetworkError as error:
                if told != str(error):
                    words = {"error": describe(error)}
                    log.error("network not in order", extra=words)  # noqa: TRY400 - said once
                told = str(error)
            else:
                return
            await asyncio.sleep(_WATCH_AGAIN_S)

    def find_unrecorded(self, rows: Sequence[Enclave]) -> Sequence[RestoredOrphan]:
        launches = {row.id: row.launch_uuid for row in rows}
        return [
            found
            for found in map(self._found, sorted(self._left_directories()))
            if found is not None and launches.get(found.enclave) != found.launch_uuid
        ]

    def _found(self, enclave_id: EnclaveId) -> RestoredOrphan | None:
        run = RunDir(self._run_dir, enclave_id)
        if not run.is_locked():
            return None
        record = run.record()
        return RestoredOrphan(
            enclave=enclave_id,
            launch_uuid=record.launch_uuid if record else None,
            process=record.process if record else None,
            address=record.address if record else None,
            deaf=record is not None and record.deaf,
        )

    async def adopt(self, rows: Sequence[Enclave], spare: Sequence[RestoredOrphan] = ()) -> None:
        self._spared = {found.enclave: found.address for found in spare}
        known = {row.id: row for row in rows}
        homeless = [row for row in rows if not RunDir(self._run_dir, row.id).exists]
        likely = {row.id: row.process for row in rows}
        likely |= await finish_in_thread(_find_without_directory, homeless)
        leftover = self._left_directories() | await self._network.list_attached()
        orphans = leftover - known.keys() - self._spared.keys()
        for enclave_id in sorted(orphans):
            log.warning("removing an enclave that is not recorded", extra={"enclave": enclave_id})
        await asyncio.gather(
            *(
                self._driver(enclave_id).adopt(known.get(enclave_id), likely.get(enclave_id))
                for enclave_id in (*known, *orphans)
            )
        )
        for enclave_id in (*known, *orphans):
            await self._retire(enclave_id)

    def view(self, enclave_id: EnclaveId) -> VmView:
        driver = self._drivers.get(enclave_id)
        return driver.view if driver else ABSENT

    async def launch(self, enclave: Enclave, order: LaunchOrder) -> ProcessIdentity:
        self._ended.mark(enclave, order.release.tag)
        try:
            return await self._driver(enclave.id).launch(enclave, order)
        except BaseException:
            await self._retire(enclave.id)
            raise

    async def finish(self, enclave: Enclave, grace_s: float, serves_booted: ServesBooted) -> Press:
        driver = self._drivers.get(enclave.id)
        return await driver.finish(grace_s, serves_booted) if driver else Press.NONE

    async def stop(
        self, enclave: Enclave, grace_s: float, serves_booted: ServesBooted | None = None
    ) -> Press:
        press = await self._driver(enclave.id).stop(grace_s, serves_booted)
        await self._retire(enclave.id)
        return press

    async def remove(self, spared: EnclaveId, grace_s: float) -> None:
        await self._driver(spared).stop(grace_s)
        await self._retire(spared)
        self._spared.pop(spared, None)
        self.forget(spared)

    def endpoint(self, enclave: Enclave, revision: Revision, guest_port: int) -> Endpoint:
        return self._network.endpoint(enclave.address, guest_port, revision.guest_ports)

    def addresses(self) -> Sequence[str]:
        taken = set(self._spared.values())
        return [address for address in self._network.addresses() if address not in taken]

    def console_tail(self, enclave_id: EnclaveId, max_bytes: int = 8192) -> bytes:
        return self._console(enclave_id).tail(max_bytes)

    async def drain_console(self, enclave_id: EnclaveId) -> None:
        driver = self._drivers.get(enclave_id)
        if driver is not None:
            await driver.drain_console()

    def ended_consoles(self, deployment: DeploymentName) -> Sequence[EndedConsole]:
        return self._ended.listed(deployment)

    def ended_console_tail(self, enclave_id: EnclaveId, max_bytes: int) -> bytes | None:
        return self._ended.tail(enclave_id, max_bytes)

    def forget(self, enclave_id: EnclaveId) -> None:
        self._ended.take(self._consoles / enclave_id, enclave_id)

    def forget_others(self, known: Collection[EnclaveId]) -> None:
        logged = {path.name for path in self._consoles.iterdir()}
        for name in sorted(logged | self._ended.marked()):
            if _ENCLAVE_ID.fullmatch(name) and name not in {*known, *self._spared}:
                self.forget(EnclaveId(name))

    async def close(self) -> None:
        tasks = [task for task in (self._proving, self._watching) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        drivers = list(self._drivers.values())
        self._drivers.clear()
        await asyncio.gather(*(driver.close() for driver in drivers))

    def _driver(self, enclave_id: EnclaveId) -> Driver:
        driver = self._drivers.get(enclave_id)
        if driver is None:
            driver = Driver(
                enclave_id,
                RunDir(self._run_dir, enclave_id),
                self._console(enclave_id),
                self._resources,
                lambda: self.changed.tell(enclave_id),
            )
            self._drivers[enclave_id] = driver
        return driver

    async def _retire(self, enclave_id: EnclaveId) -> None:
        """Drop the driver of an enclave of which nothing is left."""
        driver = self._drivers.get(enclave_id)
        if driver is not None and driver.idle:
            del self._drivers[enclave_id]
            await driver.close()

    def _console(self, enclave_id: EnclaveId) -> ConsoleLog:
        return ConsoleLog(self._consoles / enclave_id)

    def _left_directories(self) -> set[EnclaveId]:
        with storage_errors("read", self._run_dir):
            return {
                EnclaveId(path.name)
                for path in self._run_dir.iterdir()
                if _ENCLAVE_ID.fullmatch(path.name) and path.is_dir()
            }

    def _begin_proof(self) -> asyncio.Task[AccelVerdict]:
        if self._proving is None:
            self._proving = asyncio.create_task(self._prove(), name="acceleration proof")
        return self._proving

    async def _prove(self) -> AccelVerdict:
        verdict = await self._proof.resolve()
        log.info("acceleration", extra={"accel": str(verdict.value), "reason": verdict.reason})
        self.accel_verdict = verdict
        self.changed.notify()
        return verdict

    async def _verdict(self) -> AccelVerdict:
        return await asyncio.shield(self._begin_proof())


def _find_without_directory(rows: Sequence[Enclave]) -> dict[EnclaveId, ProcessIdentity]:
    """Processes of launches whose run directory somebody removed."""
    found = find_by_option("-uuid", [row.launch_uuid for row in rows])
    processes: dict[EnclaveId, ProcessIdentity] = {}
    for row in rows:
        for pid in found[row.launch_uuid]:
            identity = identify(pid)
            if identity is not None:
                processes[row.id] = identity
    return processes
