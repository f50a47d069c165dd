"""PCI functions, NVML's words and remembered rows, with only what a test cares about named."""

from __future__ import annotations

from typing import Any

from agent.inventory.nvml.values import NvmlGpu
from agent.model.gpu import Gpu, KnownGpu, Quarantine
from agent.model.ids import Bdf
from agent.model.inventory import Inventory
from agent.model.pci import Link, PciFunction, PciKind
from simulator.rows import instant

BDF = Bdf("0000:18:00.0")
OTHER = Bdf("0000:2a:00.0")
FULL_LINK = Link(speed_gts=32.0, width=16, max_speed_gts=32.0, max_width=16)


def function(bdf: str = BDF, **changes: Any) -> PciFunction:
    values: dict[str, Any] = {
        "kind": PciKind.GPU,
        "location": f"place-of-{bdf}",
        "class_code": 0x030200,
        "vendor": 0x10DE,
        "device": 0x2330,
        "numa_node": 0,
        "iommu_group": 11,
        "link": FULL_LINK,
        "responds": True,
    }
    return PciFunction(bdf=Bdf(bdf), **(values | changes))


def seen(bdf: str = BDF, uuid: str = "GPU-1", **changes: Any) -> NvmlGpu:
    values: dict[str, Any] = {
        "uuid": uuid,
        "serial": f"S-{uuid}",
        "module_id": 3,
        "name": "NVIDIA H100 80GB HBM3",
        "architecture": "hopper",
        "memory_mib": 81559,
    }
    return NvmlGpu(bdf=Bdf(bdf), **(values | changes))


def known(uuid: str | None = "GPU-1", bdf: str | None = BDF, **changes: Any) -> KnownGpu:
    location = f"place-of-{bdf}" if bdf else None
    values: dict[str, Any] = {
        "key": uuid or f"at:{location}",
        "location": location,
        "device": 0x2330,
        "uuid": uuid,
    }
    if uuid is not None:
        values |= {
            "serial": f"S-{uuid}",
            "module_id": 3,
            "name": "NVIDIA H100 80GB HBM3",
            "architecture": "hopper",
            "memory_mib": 81559,
            "learned_at": instant(),
        }
    return KnownGpu(bdf=Bdf(bdf) if bdf else None, **(values | changes))


def quarantine(reason: str = "it failed three launches") -> Quarantine:
    return Quarantine(reason=reason, since=instant())


def gpu(bdf: str = BDF, **changes: Any) -> Gpu:
    return Gpu(bdf=Bdf(bdf), **changes)


def inventory(*gpus: Gpu, **changes: Any) -> Inventory:
    values: dict[str, Any] = {"observed_at": instant(), "complete": True}
    return Inventory(gpus=gpus, **(values | changes))
