"""The preflight of confidential launches: a look at this host, judged by `enclaves.preflight`."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import resource
from collections.abc import Awaitable, Callable
from pathlib import Path

from agent.config import Config, Tee
from agent.enclaves.cage_prove import CageLook
from agent.enclaves.capabilities import lacks
from agent.enclaves.devices import devices_of
from agent.enclaves.preflight import Ground, Lack, Need, PreflightError, lacks_of
from agent.enclaves.qemu_probe import QemuProbe, QemuProbeError
from agent.enclaves.quotes import quotes_fault, read_quote_service
from agent.enclaves.spec import PlainTee, SevSnpTee, TeeVariant, VmAccel
from agent.errors import AgentError, describe
from agent.host.units import borrow
from agent.inventory.platform import PlatformProbe
from agent.inventory.port import Gpus
from agent.model.enclave import Enclave
from agent.model.inventory import HostInventory
from agent.model.release import LocalImage, Release

_SYS_RESOURCE = 24  # linux/capability.h


class HostPreflight:
    """Implements `agent.updates.engine.preflight.Preflight`.

    `look`: the host around the GPUs, now. `cage`: looks from inside of one, where VMs are caged;
    what it finds wrong keeps nothing from being launched again that was admitted.

    `in_units`: a VM has a unit of systemd for itself, which may lock what it needs.
    """

    def __init__(
        self,
        tee: Tee,
        config: Config,
        qemu: QemuProbe,
        gpus: Gpus,
        look: Callable[[], Awaitable[HostInventory]],
        *,
        in_units: bool,
        cage: CageLook | None = None,
    ) -> None:
        self._cage = cage
        self._tee = tee
        self._config = config
        self._qemu = qemu
        self._gpus = gpus
        self._look = look
        self._in_units = in_units

    async def __call__(self, enclave: Enclave, image: LocalImage, *, prepared: bool) -> None:
        """Raises PreflightError, InventoryError."""
        devices = (*enclave.gpus, *enclave.switches)
        if prepared and devices:
            await self._gpus.refresh()
        need = Need(
            tee=self._tee,
            memory_mib=enclave.memory_mib,
            devices=devices,
            inherits=enclave.replaces is not None and not prepared,
            prepared=prepared,
            data_disks=len(image.models),
            ports_by_board=enclave.ports_by_board,
        )
        ground = await self._ground(need, image.firmware)
        if self._cage is not None and not prepared:
            faults = await self._from_inside(self._cage, enclave)
            ground = dataclasses.replace(ground, cage_faults=faults)
        wrong = lacks_of(need, ground)
        if wrong:
            raise PreflightError(wrong)

    async def foresee(self, release: Release, firmware: Path | None) -> list[Lack]:
        """What a launch would lack, but for devices, memory and ids, which the ledger gives."""
        need = Need(
            tee=self._tee,
            memory_mib=release.demand.memory_mib,
            inherits=True,
            data_disks=len(release.models),
        )
        return lacks_of(need, await self._ground(need, firmware))

    async def _ground(self, need: Need, firmware: Path | None) -> Ground:
        inventory = self._gpus.inventory
        known = {bdf: inventory.gpu(bdf) for bdf in need.devices} if inventory else {}
        unable, quotes = await asyncio.gather(self._unable(need), self._quotes())
        return Ground(
            host=await self._look(),
            reserve_mib=self._config.reserve.memory_mib,
            devices={bdf: gpu for bdf, gpu in known.items() if gpu is not None},
            unable=unable,
            memory_lockable=self._in_units or self._may_lock(),
            quotes_fault=quotes,
            firmware_fault=self._firmware(firmware),
        )

    async def _from_inside(self, cage: CageLook, enclave: Enclave) -> tuple[str, ...]:
        """Its GPUs are given as descriptors, and need not be found."""
        devices = devices_of(VmAccel.KVM, _probed(self._tee), ())
        quotes = read_quote_service(self._config.qemu.quote_service)
        passed = bool(enclave.gpus or enclave.switches)
        try:
            found = await cage.lacks(
                f"enclave-look-{enclave.id}",
                devices,
                quotes=quotes if self._tee is Tee.TDX else None,
                sysfs=passed,
            )
        except (AgentError, OSError) as error:
            return (describe(error),)
        return tuple(found)

    async def _unable(self, need: Need) -> tuple[str, ...]:
        try:
            found = await self._qemu.capabilities()
        except QemuProbeError as error:
            return (describe(error),)
        shown = ".".join(map(str, found.version))
        told = lacks(found, self._tee, devices=bool(need.devices))
        return tuple(f"{shown}: {one}" for one in told)

    async def _quotes(self) -> str | None:
        if self._tee is not Tee.TDX:
            return None
        service = read_quote_service(self._config.qemu.quote_service)
        return await quotes_fault(service, borrow if self._in_units else None)

    def _may_lock(self) -> bool:
        """In a cage QEMU is no root, and its limit is raised before it is nobody."""
        if self._cage is not None:
            return _may_lock("nobody") or _has_capability(_SYS_RESOURCE)
        return _may_lock(self._config.qemu.user)

    def _firmware(self, firmware: Path | None) -> str | None:
        own, qemu = self._config.qemu.tdx_firmware, self._config.qemu
        if self._tee is not Tee.TDX:
            missing = f"no file of {qemu.firmware_dir} has the SHA-256 that the release names"
            return missing if firmware is None else None
        if own is None:
            return "qemu.tdx_firmware names no firmware"
        return None if own.is_file() else f"qemu.tdx_firmware: {own} is not there"


def _probed(tee: Tee) -> TeeVariant:
    """As far as it has devices of its own."""
    return SevSnpTee(cbitpos=51, reduced_phys_bits=1) if tee is Tee.SEV_SNP else PlainTee()


def host_look(config: Config) -> Callable[[], Awaitable[HostInventory]]:
    """A look at the host now, off the event loop."""
    probe = PlatformProbe(
        disk=config.state_dir,
        sysfs_root=config.host.sysfs_root,
        cgroup_root=config.host.cgroup_root,
        vcpus=config.host.vcpus,
    )

    async def look() -> HostInventory:
        return await asyncio.to_thread(probe.read)

    return look


def _has_capability(number: int) -> bool:
    """Whether this process has it in effect (proc(5))."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return bool(int(text.split("\nCapEff:\t")[1].split()[0], 16) >> number & 1)


def _may_lock(user: str | None) -> bool:
    """Whether a QEMU may lock as much as a guest has: as root it always may.

    Without a unit of its own it inherits the limit of the agent, whoever it runs as.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return soft == resource.RLIM_INFINITY or (user in (None, "root") and os.geteuid() == 0)
