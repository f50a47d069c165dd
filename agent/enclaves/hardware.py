"""What of this host goes into a VM: its TEE, the firmware of a trust domain, its devices' needs.

Invariant: nothing here depends on which slot an enclave has. The processor's numbers are those of
the very QEMU that will run the VM.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

from agent.config import Tee
from agent.enclaves.capabilities import lacks
from agent.enclaves.mmio import window_mib
from agent.enclaves.port import EnclaveError
from agent.enclaves.qemu_probe import QemuProbe
from agent.enclaves.root_ports import root_ports_for
from agent.enclaves.rundir import RunDir
from agent.enclaves.spec import (
    PlainTee,
    QuoteService,
    SevSnpTee,
    SimulatedTee,
    TdxTee,
    TeeVariant,
    VsockQuotes,
)
from agent.model.enclave import Enclave
from agent.model.gpu import Gpu
from agent.model.ids import Bdf
from agent.model.pci import Bar


@dataclass(frozen=True, slots=True)
class Passage:
    """How an enclave's devices of the host reach it. See `VmSpec`."""

    mmio_window_mib: int | None = None
    iommufd: bool = False
    numa_node: int | None = None
    root_ports: str | None = None


class Hardware:
    """`device_of`: what the inventory knows of a GPU or switch. `firmware`: of trust domains."""

    def __init__(
        self,
        tee: Tee,
        probe: QemuProbe,
        *,
        device_of: Callable[[Bdf], Gpu | None] = lambda _: None,
        quotes: QuoteService | None = None,
        firmware: Path | None = None,
        cpu_model: str = "",
    ) -> None:
        self.tee = tee
        self.firmware = firmware if tee is Tee.TDX else None
        self._cpu_model = cpu_model
        self._probe = probe
        self._device_of = device_of
        self._quotes = quotes or VsockQuotes()

    async def variant(self, run: RunDir) -> TeeVariant:
        """The TEE of a VM. Raises EnclaveError `qemu_unfit`, QemuProbeError."""
        match self.tee:
            case Tee.NONE:
                return PlainTee()
            case Tee.SIMULATED:
                return SimulatedTee(run.psp_socket)
            case Tee.SEV_SNP:
                return await self._snp()
            case Tee.TDX:
                await self._prove_able(devices=False)
                return TdxTee(self._quotes)
            case Tee.AUTO:
                raise EnclaveError("tee_unavailable", "which TEE this host has is not known")
        assert_never(self.tee)

    async def _snp(self) -> SevSnpTee:
        await self._prove_able(devices=False)
        sev = (await self._probe.capabilities()).sev
        assert sev is not None, "its absence is a lack"
        return SevSnpTee(sev.cbitpos, sev.reduced_phys_bits)

    async def _prove_able(self, *, devices: bool) -> None:
        found = await self._probe.capabilities()
        told = lacks(found, self.tee, devices=devices)
        if told:
            shown = ".".join(map(str, found.version))
            raise EnclaveError("qemu_unfit", f"QEMU {shown}: {'; '.join(told)}")

    async def passage(self, enclave: Enclave) -> Passage:
        """How its devices reach it. Raises EnclaveError `qemu_unfit`, `gpu_unknown`.

        Plain VMs make do with what every QEMU has: type1, and the firmware's own window.
        """
        devices = (*enclave.gpus, *enclave.switches)
        if self.tee not in (Tee.SEV_SNP, Tee.TDX) or not devices:
            return Passage()
        await self._prove_able(devices=True)
        return Passage(
            mmio_window_mib=window_mib(map(self._bars, devices)),
            iommufd=True,
            numa_node=self._node(devices),
            root_ports=self._root_ports(enclave),
        )

    def cpu_kind(self) -> str:
        """`sev-snp`, `tdx`, `simulated` or `none`, with the processor's model behind it."""
        return f"{self.tee} {self._cpu_model}".strip()

    def gpu_kind(self, enclave: Enclave) -> str:
        """The model of its GPUs, or their models; empty without any, or while it is not known."""
        known = [self._device_of(bdf) for bdf in enclave.gpus]
        return ", ".join(dict.fromkeys(gpu.name for gpu in known if gpu and gpu.name))

    def _bars(self, bdf: Bdf) -> tuple[Bar, ...]:
        device = self._device_of(bdf)
        if device is None or device.bars is None:
            raise EnclaveError(
                "gpu_unknown", f"the BARs of {bdf} are not known: is it still on the bus?"
            )
        return device.bars

    def _root_ports(self, enclave: Enclave) -> str | None:
        if self.tee is not Tee.TDX or not enclave.ports_by_board:
            return None
        known = [self._device_of(bdf) for bdf in (*enclave.gpus, *enclave.switches)]
        ports = root_ports_for([device for device in known if device is not None])
        return ports.name if ports else None

    def _node(self, devices: tuple[Bdf, ...]) -> int | None:
        """The one node that all of them are at; None if there is no such."""
        known = [self._device_of(bdf) for bdf in devices]
        nodes = {device.numa_node for device in known if device is not None}
        return nodes.pop() if len(nodes) == 1 else None
