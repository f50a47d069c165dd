"""The machine that a guest expects: which device sits at which PCI address, in one place.

A layout is named by the image's version. The addresses of network card and disks are the public
contract's; those of the root ports are this project's, and a measured register of a confidential
guest may depend on them: they change only together with a new layout name. A trust domain with a
board's GPUs has the root ports of the public launcher in their place (`RootPorts`), so that its
RTMR0 can be one that is endorsed publicly.
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
class RootPorts:
    """Root ports as the public launcher has them, from its published measurement inputs.

    `slots`: eight ports a slot, a function each; empty: one port that QEMU places. `hole64`: of
    the host bridge. `port_window_mib`: what the firmware is told for each port, by its number.
    `reserve64_bytes`: the window of the one port. Where BARs are larger than `hole64` (B300),
    the tables of QEMU show what they take.
    """

    name: str
    count: int
    slots: tuple[int, ...] = ()
    hole64: str = "4096G"
    port_window_mib: int | None = None
    reserve64_bytes: int | None = None

    def address(self, number: int) -> str | None:
        """Of one port, from 0; None: QEMU places it."""
        if not self.slots:
            return None
        return f"{self.slots[number // 8]:02x}.{number % 8}"


ROOT_PORTS = {
    ports.name: ports
    for ports in (
        RootPorts(name="hopper", count=12, slots=(0x16, 0x17), port_window_mib=262144),
        RootPorts(name="blackwell", count=8, slots=(0x16,), port_window_mib=262144),
        RootPorts(name="single", count=1, reserve64_bytes=512 << 30),
    )
}


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

    def data_disk_room(self, ports: RootPorts | None = None) -> int:
        """How many data disks there is room for: where root ports are, there are none."""
        last = min((slot - 1 for slot in ports.slots), default=None) if ports else None
        end = self.last_data_slot if last is None else min(last, self.last_data_slot)
        return end - self.first_data_slot + 1

    def data_disks(
        self, models: int, volumes: int, ports: RootPorts | None = None
    ) -> list[PciSlot]:
        """Places of the models, then of the volumes; serials count each kind from 1."""
        room = self.data_disk_room(ports)
        if models + volumes > room:
            why = f": the root ports of the layout {ports.name!r} lie behind" if ports else ""
            raise SpecError(
                f"{models} models and {volumes} volumes: there is room for {room}{why}"
            )
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


def root_ports_of(name: str | None) -> RootPorts | None:
    """The public launcher's of that name; None for a machine with the layout's own.

    Raises SpecError for a name that this agent does not know.
    """
    if name is None:
        return None
    try:
        return ROOT_PORTS[name]
    except KeyError:
        raise SpecError(
            f"root ports {name!r} are unknown; known: {', '.join(sorted(ROOT_PORTS))}"
        ) from None


def layout_of(name: str) -> Layout:
    """The layout of that name. Raises SpecError for one that this agent does not know."""
    try:
        return LAYOUTS[name]
    except KeyError:
        raise SpecError(
            f"machine layout {name!r} is unknown; known: {', '.join(sorted(LAYOUTS))}"
        ) from None
