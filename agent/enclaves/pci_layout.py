"""The machine that a guest expects: which device sits at which PCI address, in one place.

A layout is named by the image's version. The addresses of network card and disks are the public
contract's; those of the root ports are this project's, and a measured register of a confidential
guest may depend on them: they change only together with a new layout name.
"""

from __future__ import annotations

from dataclasses import dataclass

from agent.enclaves.spec import SpecError


@dataclass(frozen=True, slots=True)
class PciSlot:
    """An address on bus 0 (`SLOT.FUNCTION`, hex) and the serial that names a disk to the guest."""

    address: str
    serial: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """One machine. Root ports share a slot, a function each; data disks have a slot each."""

    name: str
    gpu_slot: int
    max_gpus: int
    switch_slot: int
    max_switches: int
    nic: str
    root_disk: PciSlot
    config_disk: PciSlot
    external_config_disk: PciSlot
    first_data_slot: int
    last_data_slot: int
    model_serial: str
    volume_serial: str
    simulated_psp: str
    debug_console: str

    def gpu_ports(self, count: int) -> list[str]:
        """Addresses of the root ports for that many GPUs."""
        return _ports("GPUs", self.gpu_slot, count, self.max_gpus)

    def switch_ports(self, count: int) -> list[str]:
        """Addresses of the root ports for that many NVSwitches."""
        return _ports("NVSwitches", self.switch_slot, count, self.max_switches)

    def data_disks(self, models: int, volumes: int) -> list[PciSlot]:
        """Places of the models, then of the volumes; serials count each kind from 1."""
        room = self.last_data_slot - self.first_data_slot + 1
        if models + volumes > room:
            raise SpecError(f"{models} models and {volumes} volumes: there is room for {room}")
        serials = [f"{self.model_serial}{n}" for n in range(1, models + 1)]
        serials += [f"{self.volume_serial}{n}" for n in range(1, volumes + 1)]
        return [
            PciSlot(f"{slot:02x}.0", serial)
            for slot, serial in enumerate(serials, self.first_data_slot)
        ]


def _ports(what: str, slot: int, count: int, most: int) -> list[str]:
    if count > most:
        raise SpecError(f"{count} {what}: there is room for {most}")
    return [f"{slot:02x}.{function}" for function in range(count)]


VIRTIO_PCI = Layout(
    name="virtio-pci",
    gpu_slot=0x01,
    max_gpus=8,
    switch_slot=0x03,
    max_switches=4,
    nic="02.0",
    root_disk=PciSlot("04.0", "tinfoil-rootdisk"),
    config_disk=PciSlot("05.0", "tinfoil-config"),
    external_config_disk=PciSlot("06.0", "tinfoil-ext-config"),
    first_data_slot=0x07,
    last_data_slot=0x1E,
    model_serial="tinfoil-modelwrap",
    volume_serial="tinfoil-volume",
    simulated_psp="1f.4",
    debug_console="1f.5",
)

LAYOUTS = {layout.name: layout for layout in (VIRTIO_PCI,)}


def layout_of(name: str) -> Layout:
    """The layout of that name. Raises SpecError for one that this agent does not know."""
    try:
        return LAYOUTS[name]
    except KeyError:
        raise SpecError(
            f"machine layout {name!r} is unknown; known: {', '.join(sorted(LAYOUTS))}"
        ) from None
