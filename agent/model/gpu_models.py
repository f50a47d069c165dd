"""NVIDIA's data-centre parts by PCI device id: what a GPU is before any driver has seen it."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Form(StrEnum):
    """How it is mounted, which decides the groups that it may be given out in."""

    HGX = "hgx"
    PCIE = "pcie"
    SUPERCHIP = "superchip"


class GpuModel(msgspec.Struct, frozen=True, kw_only=True):
    """`name` as people say it; NVML's own is preferred where it was ever seen."""

    name: str
    architecture: str
    form: Form


def _hopper(name: str, form: Form = Form.HGX) -> GpuModel:
    return GpuModel(name=f"NVIDIA {name}", architecture="hopper", form=form)


def _blackwell(name: str, form: Form = Form.HGX) -> GpuModel:
    return GpuModel(name=f"NVIDIA {name}", architecture="blackwell", form=form)


GPU_MODELS: dict[int, GpuModel] = {
    0x2321: _hopper("H100 NVL", Form.PCIE),
    0x2329: _hopper("H20"),
    0x2330: _hopper("H100 SXM"),
    0x2331: _hopper("H100 PCIe", Form.PCIE),
    0x2335: _hopper("H200 SXM"),
    0x2337: _hopper("H100 SXM 64 GB"),
    0x2338: _hopper("H100 SXM 96 GB"),
    0x2339: _hopper("H100 SXM 94 GB"),
    0x233B: _hopper("H200 NVL", Form.PCIE),
    0x2342: _hopper("GH200", Form.SUPERCHIP),
    0x2348: _hopper("GH200", Form.SUPERCHIP),
    0x2901: _blackwell("B200"),
    0x2909: _blackwell("B200"),
    0x2920: _blackwell("B100"),
    0x2941: _blackwell("GB200", Form.SUPERCHIP),
    0x2BB1: _blackwell("RTX PRO 6000 Workstation", Form.PCIE),
    0x2BB4: _blackwell("RTX PRO 6000 Max-Q", Form.PCIE),
    0x2BB5: _blackwell("RTX PRO 6000 Server", Form.PCIE),
    0x3182: _blackwell("B300"),
    0x31C2: _blackwell("GB300", Form.SUPERCHIP),
}

SWITCH_MODELS: dict[int, str] = {
    0x1AF1: "NVIDIA NVSwitch (A100)",
    0x22A3: "NVIDIA NVSwitch (H100)",
}
