"""From an order to a running QEMU: files are opened once, checked, and given to it as checked.

Invariants: QEMU gets the very descriptors whose bytes were hashed, never a name; the config disks
are memory that has no name at all, so no secret touches a file system; the enclave's lock is held
from before the first trace of a launch until the last process of it is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, assert_never

import msgspec

from agent.enclaves.accel import AccelVerdict
from agent.enclaves.argv import build_argv, passed_id
from agent.enclaves.boot_files import BootFiles, Firmware, check_boot_files, open_files
from agent.enclaves.cage import cage_of
from agent.enclaves.caging import CagedProgram, Caging, program_of
from agent.enclaves.devices import devices_of, open_passed, open_tap
from agent.enclaves.external_config import ExternalConfig, Metadata, render
from agent.enclaves.hardware import Hardware, Passage
from agent.enclaves.network import Network
from agent.enclaves.port import EnclaveError, LaunchCheck, LaunchOrder
from agent.enclaves.rundir import LaunchRecord, RunDir
from agent.enclaves.spec import (
    ConfidentialTee,
    Disk,
    InheritedFile,
    Nic,
    PlainTee,
    SevSnpTee,
    SimulatedTee,
    TapNic,
    TdxTee,
    TeeVariant,
    VmAccel,
    VmSpec,
)
from agent.enclaves.supervisor import StartRequest, Supervisor
from agent.host.files import StorageError
from agent.host.threads import finish_in_thread
from agent.model.enclave import Enclave, ProcessIdentity
from agent.model.ids import Bdf, EnclaveId
from agent.model.revision import LOCALHOST


class EnclaveLockHeldError(EnclaveError):
    """A process of this enclave exists, or may."""

    def __init__(self, enclave_id: EnclaveId) -> None:
        super().__init__("enclave_occupied", f"another process holds enclave {enclave_id}'s lock")


def unit_name(enclave_id: EnclaveId) -> str:
    """What a VM's process is called to the host."""
    return f"enclave-{enclave_id}"


class Launcher:
    """Starts VMs of one kind. `verdict` waits for what is known of the acceleration.

    `check_launch` holds what will be measured against the release, where something is. `caging`:
    how a VM is held to what it needs; None: as its supervisor and `user` have it.
    """

    def __init__(
        self,
        *,
        binary: str,
        user: str | None,
        network: Network,
        supervisor: Supervisor,
        verdict: Callable[[], Coroutine[Any, Any, AccelVerdict]],
        hardware: Hardware,
        check_launch: LaunchCheck | None = None,
        caging: Caging | None = None,
    ) -> None:
        self._caging = caging
        self._binary = binary
        self._user = user
        self._network = network
        self._supervisor = supervisor
        self._verdict = verdict
        self._hardware = hardware
        self._check_launch = check_launch

    async def start(self, enclave: Enclave, order: LaunchOrder, run: RunDir) -> ProcessIdentity:
        """Start the VM's process, which inherits the enclave's lock.

        Raises LockHeldError with nothing changed, or any AgentError: then, as after a
        cancellation, what was made is for the caller to clean; the lock tells whether a VM runs.
        """
        verdict = await self._verdict()
        if not verdict.usable:
            raise EnclaveError("kvm_unavailable", verdict.reason)
        tee = await self._hardware.variant(run)
        if isinstance(tee, ConfidentialTee) and verdict.value is not VmAccel.KVM:
            detail = f"a confidential VM runs under KVM only, and here: {verdict.reason}"
            raise EnclaveError("kvm_unavailable", detail)
        passage = await self._hardware.passage(enclave)
        unit = self._supervisor.unit(unit_name(enclave.id))
        stop_socket = run.stop_socket if unit is not None else None
        with ExitStack() as held:
            run.create()
            lock = run.take_lock()
            if lock is None:
                raise EnclaveLockHeldError(enclave.id)
            held.callback(os.close, lock)
            record = LaunchRecord(
                launch_uuid=enclave.launch_uuid,
                address=enclave.address,
                simulated=isinstance(tee, SimulatedTee),
                debug_console=order.release.debug,
                deaf=order.deaf,
            )
            run.write_record(record)
            external = render(_external_config(enclave, order, self._network, self._hardware))
            files = open_files(held, order, external, _firmware(tee, order, self._hardware))
            nic = await self._check_and_attach(enclave, order, files)
            if isinstance(nic, TapNic):
                nic = dataclasses.replace(nic, fd=open_tap(held, nic.name))
            passed = (*enclave.gpus, *enclave.switches)
            given = await self._open_passed(held, passed, passage)
            if given is not None:
                named: dict[str, Bdf] = {}
                for number, (fd, bdf) in enumerate(zip(given[1], passed, strict=True), 1):
                    named |= {f"VFIO_FD{fd}": bdf, passed_id(number): bdf}  # QEMU 10; 11
                record = msgspec.structs.replace(record, device_fds=named)
                run.write_record(record)
            caged = self._cage(enclave, tee, nic, verdict.value)
            spec = _spec(
                enclave,
                order,
                files,
                nic,
                tee=tee,
                passage=passage,
                accel=verdict.value,
                qmp_socket=run.qmp_socket,
                stop_socket=stop_socket,
            )
            if given is not None:
                spec = dataclasses.replace(spec, iommu_fd=given[0], device_fds=given[1])
            if caged is not None:
                spec = dataclasses.replace(spec, filtered=True)
            identity = await self._supervisor.start(
                StartRequest(
                    name=unit_name(enclave.id),
                    argv=build_argv(str(caged.program) if caged else self._binary, spec),
                    pass_fds=(lock, *files.all, *_tap(nic), *_all(given)),
                    output=run.output,
                    user=None if caged else self._user,
                    writable=(run.vm,),
                    devices=devices_of(spec.accel, spec.tee, () if given else passed),
                    stop_socket=stop_socket,
                    asks_guest=not order.deaf,
                    cage=caged.cage if caged else None,
                    root=run.root,
                )
            )
        # It runs, and can be found without this, by its lock and its arguments.
        with contextlib.suppress(StorageError):
            run.write_record(msgspec.structs.replace(record, process=identity))
        return identity

    async def _open_passed(
        self, held: ExitStack, passed: Sequence[Bdf], passage: Passage
    ) -> tuple[int, tuple[int, ...]] | None:
        """None where QEMU opens them itself, by name: outside a cage, and without iommufd."""
        if self._caging is None or not passed or not passage.iommufd:
            return None
        return await finish_in_thread(open_passed, held, passed, self._caging.borrow)

    def _cage(
        self, enclave: Enclave, tee: TeeVariant, nic: Nic, accel: VmAccel
    ) -> CagedProgram | None:
        """Raises EnclaveError where there is no such program."""
        if self._caging is None:
            return None
        program = program_of(self._binary)
        cage = cage_of(
            address=enclave.address,
            memory_mib=enclave.memory_mib,
            vcpus=enclave.vcpus,
            accel=accel,
            tee=tee,
            nic=nic,
            passed=bool(enclave.gpus or enclave.switches),
            program=program,
        )
        return CagedProgram(cage, program)

    async def _check_and_attach(
        self, enclave: Enclave, order: LaunchOrder, files: BootFiles
    ) -> Nic:
        """Hash what boots while the network card is made ready."""
        checking = asyncio.create_task(
            finish_in_thread(check_boot_files, enclave, order, files, self._check_launch)
        )
        try:
            ports = order.revision.guest_ports
            nic = await self._network.attach(enclave.id, enclave.address, ports)
            await checking
        finally:
            # Its descriptors are closed by our caller: the thread must be out of them.
            checking.cancel()
            await asyncio.gather(checking, return_exceptions=True)
        return nic


def _all(given: tuple[int, tuple[int, ...]] | None) -> tuple[int, ...]:
    return () if given is None else (given[0], *given[1])


def _tap(nic: Nic) -> tuple[int, ...]:
    return (nic.fd,) if isinstance(nic, TapNic) and nic.fd is not None else ()


def _firmware(tee: TeeVariant, order: LaunchOrder, hardware: Hardware) -> Firmware | None:
    """A plain VM boots QEMU's own; a trust domain the operator's, whose register is endorsed."""
    match tee:
        case PlainTee():
            return None
        case TdxTee():
            return Firmware.of_host(hardware.firmware)
        case SimulatedTee() | SevSnpTee():
            return Firmware.of_release(order)
    assert_never(tee)


def _external_config(
    enclave: Enclave, order: LaunchOrder, network: Network, hardware: Hardware
) -> ExternalConfig:
    revision = order.revision
    domain = revision.own_guest_domain or LOCALHOST
    return ExternalConfig(
        env={**revision.variables, "DOMAIN": domain},
        secrets=order.secrets,
        metadata=Metadata(
            id=enclave.id,
            domain=domain,
            image=order.release.cvm_version,
            cpu=hardware.cpu_kind(),
            gpu=hardware.gpu_kind(enclave),
            repo=revision.repo,
            tag=revision.tag,
            digest=f"sha256:{revision.release_digest}",
        ),
        network=network.guest_address(enclave.address),
    )


def _spec(
    enclave: Enclave,
    order: LaunchOrder,
    files: BootFiles,
    nic: Nic,
    *,
    tee: TeeVariant,
    passage: Passage,
    accel: VmAccel,
    qmp_socket: Path,
    stop_socket: Path | None,
) -> VmSpec:
    release = order.release
    return VmSpec(
        enclave_id=enclave.id,
        launch_uuid=enclave.launch_uuid,
        layout=release.layout,
        accel=accel,
        tee=tee,
        memory_mib=enclave.memory_mib,
        vcpus=enclave.vcpus,
        kernel=InheritedFile(files.kernel),
        initrd=InheritedFile(files.initrd),
        cmdline=release.cmdline,
        root_disk=Disk(InheritedFile(files.root_disk)),
        config_disk=Disk(InheritedFile(files.config)),
        external_config_disk=Disk(InheritedFile(files.external_config)),
        models=tuple(Disk(InheritedFile(fd)) for fd in files.models),
        nic=nic,
        qmp_socket=qmp_socket,
        stop_socket=stop_socket,
        firmware=None if files.firmware is None else InheritedFile(files.firmware),
        gpus=enclave.gpus,
        switches=enclave.switches,
        mmio_window_mib=passage.mmio_window_mib,
        iommufd=passage.iommufd,
        numa_node=passage.numa_node,
        root_ports=passage.root_ports,
        debug_console=release.debug,
    )
