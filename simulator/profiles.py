"""The hosts that can be simulated: their devices, and what the NVIDIA driver says of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from agent.inventory.pci import PciReader
from agent.model.ids import Bdf
from agent.model.pci import PciKind
from simulator import sysfs_tree as trees
from simulator.nvml import H100

DRIVER = "nvidia"


@dataclass(frozen=True, slots=True)
class Profile:
    """One kind of host. `says`: what NVML tells of each GPU, where an H100 would not.

    `switch`, `row`: the kernel's switch of confidential computing, and what its guests are
    charged to.
    """

    name: str
    tree: Callable[[Path], trees.SysfsTree]
    says: Mapping[str, object]
    switch: str = "kvm_amd/parameters/sev_snp"
    row: str = "sev_es"
    nodes: int = 1

    def drivers(self, tree: trees.SysfsTree) -> Iterator[tuple[Bdf, str]]:
        """Whom NVIDIA's module gives each device to when it is loaded."""
        for one in PciReader(tree.root).read():
            yield one.bdf, DRIVER if one.kind is PciKind.GPU else "nvidia-nvswitch"

    def gpus(self, tree: trees.SysfsTree) -> Iterator[tuple[Bdf, dict[str, object]]]:
        """Each GPU of its tree, and all that NVML tells of it. The name says what it is not."""
        found = [one.bdf for one in PciReader(tree.root).read() if one.kind is PciKind.GPU]
        for number, bdf in enumerate(found):
            own = {
                "uuid": f"GPU-simulated-{number:04d}",
                "serial": f"simulated-{number:04d}",
                "module_id": (number + 4) % 8 + 1,  # which is not the order of the bus
            }
            told = {**H100, **self.says, **own}
            yield bdf, told | {"name": f"{told['name']} (simulated)"}


_B200: Mapping[str, object] = {"name": "NVIDIA B200", "architecture": 10, "memory_mib": 183359}
_PCIE: Mapping[str, object] = {"name": "NVIDIA H100 PCIe", "nvlinks": "0 0", "fabric": "0 0 0 0"}

PROFILES = {
    profile.name: profile
    for profile in (
        Profile("hgx-h100", trees.hgx_h100, {}, nodes=2),
        Profile("hgx-b200", trees.hgx_b200, _B200, "kvm_intel/parameters/tdx", "tdx", nodes=2),
        Profile("2xh100-pcie", trees.pcie_boards, _PCIE),
        Profile("cpu-only", trees.cpu_only, {}),
    )
}
