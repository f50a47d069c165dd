"""The hosts that can be simulated: their devices, and what the NVIDIA driver says of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from agent.inventory.pci import PciReader
from agent.model.ids import Bdf
from agent.model.pci import PciKind
from simulator import card_trees
from simulator import sysfs_tree as trees
from simulator.nvml import H100

DRIVER = "nvidia"


@dataclass(frozen=True, slots=True)
class Profile:
    """One kind of host. `says`: what NVML tells of each GPU, where an H100 would not; `of_part`:
    of those with that PCI device id instead.

    `switch`, `row`: the kernel's switch of confidential computing, and what its guests are
    charged to.
    """

    name: str
    tree: Callable[[Path], trees.SysfsTree]
    says: Mapping[str, object]
    switch: str = "kvm_amd/parameters/sev_snp"
    row: str = "sev_es"
    nodes: int = 1
    of_part: Mapping[int, Mapping[str, object]] = field(default_factory=dict)

    def drivers(self, tree: trees.SysfsTree) -> Iterator[tuple[Bdf, str]]:
        """Whom NVIDIA's module gives each device to when it is loaded."""
        for one in PciReader(tree.root).read():
            yield one.bdf, DRIVER if one.kind is PciKind.GPU else "nvidia-nvswitch"

    def gpus(self, tree: trees.SysfsTree) -> Iterator[tuple[Bdf, dict[str, object]]]:
        """Each GPU of its tree, and all that NVML tells of it. The name says what it is not."""
        found = [one for one in PciReader(tree.root).read() if one.kind is PciKind.GPU]
        for number, one in enumerate(found):
            own = {
                "uuid": f"GPU-simulated-{number:04d}",
                "serial": f"simulated-{number:04d}",
                "module_id": (number + 4) % 8 + 1,  # which is not the order of the bus
            }
            told = {**H100, **self.of_part.get(one.device or 0, self.says), **own}
            yield one.bdf, told | {"name": f"{told['name']} (simulated)"}


_B200: Mapping[str, object] = {"name": "NVIDIA B200", "architecture": 10, "memory_mib": 183359}
_CARD: dict[str, object] = {"nvlinks": "0 0", "fabric": "0 0 0 0"}
_PCIE = _CARD | {"name": "NVIDIA H100 PCIe"}
_GB202 = _CARD | {"architecture": 10, "memory_mib": 97887}
_PRO_6000 = _GB202 | {"name": "NVIDIA RTX PRO 6000 Blackwell Server Edition"}
_WORKSTATION = _GB202 | {"name": "NVIDIA RTX PRO 6000 Blackwell Workstation Edition"}
_H200_NVL: Mapping[str, object] = {
    "name": "NVIDIA H200 NVL",
    "memory_mib": 143771,
    "nvlinks": "18 18",  # by the bridge; there is no fabric
    "fabric": "0 0 0 0",
}
_L40S = _CARD | {"name": "NVIDIA L40S", "architecture": 8, "memory_mib": 46068, "gpm": 0}

PROFILES = {
    profile.name: profile
    for profile in (
        Profile("hgx-h100", trees.hgx_h100, {}, nodes=2),
        Profile("hgx-b200", trees.hgx_b200, _B200, "kvm_intel/parameters/tdx", "tdx", nodes=2),
        Profile("hgx-h800", trees.hgx_h800, {"name": "NVIDIA H800"}, nodes=2),
        Profile("2xh100-pcie", trees.pcie_boards, _PCIE),
        Profile("h200-nvl-2x-bridge", card_trees.h200_nvl_bridge, _H200_NVL),
        Profile("rtx-pro-6000-4x", card_trees.rtx_pro_6000_4x, _PRO_6000, nodes=2),
        Profile(
            "display-and-h100",
            card_trees.display_beside_h100,
            _PCIE,
            of_part={card_trees.RTX_PRO_6000_WS: _WORKSTATION},
        ),
        Profile("l40s-virtual-functions", card_trees.virtual_functions_of_l40s, _L40S),
        Profile("cpu-only", trees.cpu_only, {}),
    )
}
