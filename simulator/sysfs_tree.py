"""A sysfs that a host could have: devices behind ports, IOMMU groups, drivers, odd values.

Laid out as the kernel does: entries of `bus/pci/devices` are links into `devices/pci…`, a driver
is a link to its directory, an IOMMU group has links back to its members. `put` writes any
attribute, so that a test can break one.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

GPU, GPU_3D, SWITCH, BRIDGE, AUDIO = 0x030000, 0x030200, 0x068000, 0x060400, 0x040300
NVIDIA, AMD, INTEL = 0x10DE, 0x1002, 0x8086
H100_SXM, H100_PCIE, H800_SXM, B200, NVSWITCH = 0x2330, 0x2331, 0x2324, 0x2901, 0x22A3
_MEM, _MEM64 = 0x40200, 0x14220C
_BARS = {GPU: (16, 131072, 32), GPU_3D: (16, 131072, 32), SWITCH: (32,)}


@dataclass
class SysfsTree:
    """`root` is what `host.sysfs_root` points at."""

    root: Path
    _groups: int = field(default=10)

    def __post_init__(self) -> None:
        for name in ("bus/pci/devices", "bus/pci/drivers/nvidia", "bus/pci/drivers/vfio-pci"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        (self.root / "kernel/iommu_groups").mkdir(parents=True, exist_ok=True)
        probe = self.root / "bus/pci/drivers_autoprobe"
        if not probe.exists():
            probe.write_text("1\n")

    @property
    def devices(self) -> Path:
        return self.root / "bus/pci/devices"

    def bus(self, name: str) -> Path:
        """A root bus, such as pci0000:15."""
        path = self.root / "devices" / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def add(
        self,
        above: Path,
        bdf: str,
        *,
        class_code: int,
        vendor: int = NVIDIA,
        device: int = 0,
        numa_node: int = 0,
        driver: str | None = None,
        group: int | None = None,
        speed: str = "32.0 GT/s PCIe",
        width: int = 16,
        bars_mib: tuple[int, ...] | None = None,
    ) -> Path:
        """One function below a bus or a port; returns its directory.

        `bars_mib`: None for those that such a device of NVIDIA's has.
        """
        bars = _BARS.get(class_code, ()) if bars_mib is None else bars_mib
        path = above / bdf
        path.mkdir(parents=True)
        for name, value in (
            ("class", f"0x{class_code:06x}"),
            ("vendor", f"0x{vendor:04x}"),
            ("device", f"0x{device:04x}"),
            ("subsystem_vendor", f"0x{vendor:04x}"),
            ("subsystem_device", "0x16c1"),
            ("numa_node", str(numa_node)),
            ("driver_override", "(null)"),
            ("current_link_speed", speed),
            ("max_link_speed", speed),
            ("current_link_width", str(width)),
            ("max_link_width", str(width)),
            ("d3cold_allowed", "1"),
            ("power_state", "D0"),
            ("reset_method", "flr bus"),
            ("reset", ""),
            ("remove", ""),
            ("rescan", ""),
            ("resource", _resource(bars)),
        ):
            self.put(path, name, value)
        (path / "config").write_bytes(
            vendor.to_bytes(2, "little") + device.to_bytes(2, "little") + bytes(60)
        )
        for kind, total in (("correctable", "COR"), ("nonfatal", "NONFATAL"), ("fatal", "FATAL")):
            self.put(path, f"aer_dev_{kind}", f"Undefined 0\nTOTAL_ERR_{total} 0")
        (self.devices / bdf).symlink_to(os.path.relpath(path, self.devices))
        if driver:
            self.bind(bdf, driver)
        if group is not None:
            self.join(bdf, group)
        return path

    def put(self, where: Path | str, name: str, value: str) -> None:
        """Write an attribute of a directory or of a BDF."""
        folder = where if isinstance(where, Path) else self.devices / where
        (folder / name).write_text(f"{value}\n" if value else "")

    def drop(self, bdf: str, name: str) -> None:
        """This kernel has no such attribute."""
        (self.devices / bdf / name).unlink()

    def bind(self, bdf: str, driver: str | None) -> None:
        """Move the driver link, as a bind and an unbind do."""
        link = self.devices / bdf / "driver"
        link.unlink(missing_ok=True)
        shutil.rmtree(self.devices / bdf / "vfio-dev", ignore_errors=True)
        if driver is None:
            return
        folder = self.root / "bus/pci/drivers" / driver
        folder.mkdir(parents=True, exist_ok=True)
        link.symlink_to(folder)
        if driver.replace("-", "_").endswith("vfio_pci"):
            node = self.devices / bdf / "vfio-dev/vfio0"
            node.mkdir(parents=True, exist_ok=True)
            self.put(node, "dev", "511:0")

    def join(self, bdf: str, group: int) -> None:
        """Put a function into an IOMMU group."""
        folder = self.root / "kernel/iommu_groups" / str(group)
        (folder / "devices").mkdir(parents=True, exist_ok=True)
        (folder / "devices" / bdf).symlink_to(self.devices / bdf)
        (self.devices / bdf / "iommu_group").symlink_to(folder)

    def next_group(self) -> int:
        self._groups += 1
        return self._groups

    def remove(self, bdf: str) -> None:
        """The device is unplugged."""
        for link in (self.root / "kernel/iommu_groups").glob(f"*/devices/{bdf}"):
            link.unlink()
        path = (self.devices / bdf).resolve()
        (self.devices / bdf).unlink()
        shutil.rmtree(path)

    def take_off(self, bdf: str, kept: Path) -> None:
        """The kernel forgets it; `kept` is what the hardware is."""
        groups = list((self.root / "kernel/iommu_groups").glob(f"*/devices/{bdf}"))
        for link in groups:
            link.unlink()
        path = (self.devices / bdf).resolve()
        (self.devices / bdf).unlink()
        shutil.move(path, kept)

    def put_back(self, bdf: str, port: Path, kept: Path) -> None:
        """The kernel finds it behind the port again, and gives it to nobody."""
        path = port / bdf
        shutil.move(kept, path)
        (self.devices / bdf).symlink_to(os.path.relpath(path, self.devices))
        self.bind(bdf, None)
        self.put(bdf, "driver_override", "(null)")
        group = path / "iommu_group"
        if group.is_symlink():
            (group.resolve() / "devices" / bdf).symlink_to(self.devices / bdf)

    def fall_off(self, bdf: str) -> None:
        """Its configuration space reads all ones; what the kernel has cached stays."""
        (self.devices / bdf / "config").write_bytes(b"\xff" * 64)
        self.put(bdf, "current_link_speed", "Unknown")
        self.put(bdf, "current_link_width", "63")

    def gpu_behind_port(self, root_bus: str, bus: int, **more: object) -> str:
        """A root port with a GPU behind it; returns the GPU's BDF."""
        settings: dict[str, object] = {
            "class_code": GPU_3D,
            "device": H100_SXM,
            "group": self.next_group(),
        } | more
        port = self.add(
            self.bus(root_bus),
            f"0000:{bus - 1:02x}:01.0",
            class_code=BRIDGE,
            vendor=INTEL,
            device=0x352A,
            driver="pcieport",
        )
        bdf = f"0000:{bus:02x}:00.0"
        self.add(port, bdf, **settings)  # type: ignore[arg-type]
        return bdf


def _resource(bars_mib: tuple[int, ...]) -> str:
    """Each region 64-bit and prefetchable but for the first, two slots each."""
    lines, start = [], 0x20_0000_0000
    for size in bars_mib:
        end = start + (size << 20) - 1
        lines += [f"0x{start:016x} 0x{end:016x} 0x{_MEM64:016x}", f"0x{0:016x} " * 2 + "0x0"]
        start = end + 1
    lines += [f"0x{0:016x} 0x{0:016x} 0x{0:016x}"] * (7 - len(lines))
    return "\n".join(lines)


HGX_BUSES = (0x18, 0x2A, 0x3A, 0x5D, 0x9A, 0xAB, 0xBA, 0xDB)


def hgx_h800(root: Path) -> SysfsTree:
    """The same board with 8 H800 SXM."""
    return hgx_h100(root, device=H800_SXM)


def hgx_h100(root: Path, *, driver: str | None = None, device: int = H100_SXM) -> SysfsTree:
    """8 H100 SXM, four a NUMA node, and 4 NVSwitches below a PCIe switch, each in a group."""
    tree = SysfsTree(root)
    for index, bus in enumerate(HGX_BUSES):
        tree.gpu_behind_port(
            f"pci0000:{bus - 1:02x}", bus, numa_node=index // 4, driver=driver, device=device
        )
    port = tree.add(
        tree.bus("pci0000:04"), "0000:04:01.0", class_code=BRIDGE, vendor=INTEL, driver="pcieport"
    )
    for number, bus in enumerate((0x07, 0x08, 0x09, 0x0A)):
        down = tree.add(
            port, f"0000:06:{number:02x}.0", class_code=BRIDGE, vendor=0x1000, driver="pcieport"
        )
        tree.add(
            down,
            f"0000:{bus:02x}:00.0",
            class_code=SWITCH,
            device=NVSWITCH,
            width=2,
            group=tree.next_group(),
        )
    bystanders(tree)
    return tree


def hgx_b200(root: Path) -> SysfsTree:
    """8 B200; their NVSwitches show no device of class 0x0680."""
    tree = SysfsTree(root)
    for index, bus in enumerate(HGX_BUSES):
        tree.gpu_behind_port(
            f"pci0000:{bus - 1:02x}", bus, numa_node=index // 4, device=B200, bars_mib=(64, 262144)
        )
    bystanders(tree)
    return tree


def pcie_boards(root: Path, count: int = 2) -> SysfsTree:
    """H100 PCIe cards, each with an audio function in its group, as some boards have."""
    tree = SysfsTree(root)
    for bus in HGX_BUSES[:count]:
        group = tree.next_group()
        bdf = tree.gpu_behind_port(
            f"pci0000:{bus - 1:02x}", bus, class_code=GPU, device=H100_PCIE, group=group
        )
        above = (tree.devices / bdf).resolve().parent
        tree.add(
            above,
            f"0000:{bus:02x}:00.1",
            class_code=AUDIO,
            device=0x22BA,
            driver="snd_hda_intel",
            group=group,
        )
    bystanders(tree)
    return tree


def cpu_only(root: Path) -> SysfsTree:
    """No GPU at all."""
    tree = SysfsTree(root)
    bystanders(tree)
    return tree


def bystanders(tree: SysfsTree) -> None:
    """What every server has besides: a BMC's display, a network card."""
    bus = tree.bus("pci0000:00")
    tree.add(bus, "0000:00:02.0", class_code=GPU, vendor=0x1A03, device=0x2000, driver="ast")
    tree.add(bus, "0000:00:03.0", class_code=0x020000, vendor=INTEL, driver="ice")


def with_virtual_function(
    tree: SysfsTree, of: str, *, number: int = 0, device: int = H100_SXM
) -> str:
    """A virtual function of a GPU, which the host's driver has."""
    bdf = f"{of[:-1]}{4 + number}"
    above = (tree.devices / of).resolve().parent
    path = tree.add(above, bdf, class_code=GPU_3D, device=device, driver="nvidia")
    (path / "physfn").symlink_to(f"../{of}")
    return bdf


def with_amd_card(tree: SysfsTree) -> str:
    """Another vendor's accelerator."""
    tree.add(tree.bus("pci0000:f0"), "0000:f0:00.0", class_code=GPU_3D, vendor=AMD, device=0x74A1)
    return "0000:f0:00.0"
