"""NVIDIA's parts by PCI device id: what a GPU or switch is before any driver has seen it.

Names and ids are those of the PCI ID database, forms and chips those of NVIDIA's gpu-admin-tools.
An id that is not listed still tells its chip. Confidential computing came with Hopper; on a
superchip the processor beside the GPU has neither SEV-SNP nor TDX.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

VOLTA, TURING, AMPERE, ADA = "volta", "turing", "ampere", "ada"
HOPPER, BLACKWELL = "hopper", "blackwell"


class Form(StrEnum):
    """How it is mounted, which decides the groups that it may be given out in."""

    HGX = "hgx"
    PCIE = "pcie"
    SUPERCHIP = "superchip"
    SWITCH = "switch"


class Confidential(StrEnum):
    """What a part can do for confidential guests. `UNKNOWN`: the tool that sets modes will tell.

    `ALONE`: each GPU by itself. `BOARD`: that, and all of its board together.
    """

    ALONE = "alone"
    BOARD = "board"
    NEVER = "never"
    UNKNOWN = "unknown"


class GpuPart(msgspec.Struct, frozen=True, kw_only=True):
    """`name` as people say it; NVML's own is preferred where it was ever seen. None: not known."""

    name: str | None = None
    architecture: str | None = None
    form: Form | None = None
    confidential: Confidential = Confidential.UNKNOWN


_HGX, _PCIE, _SUPERCHIP = Form.HGX, Form.PCIE, Form.SUPERCHIP
_ALONE, _BOARD = Confidential.ALONE, Confidential.BOARD
_NEVER, _UNKNOWN = Confidential.NEVER, Confidential.UNKNOWN

_PARTS: tuple[tuple[int, str, str, Form, Confidential], ...] = (
    (0x1DB1, "V100 SXM2 16 GB", VOLTA, _HGX, _NEVER),
    (0x1DB4, "V100 PCIe 16 GB", VOLTA, _PCIE, _NEVER),
    (0x1DB5, "V100 SXM2 32 GB", VOLTA, _HGX, _NEVER),
    (0x1DB6, "V100 PCIe 32 GB", VOLTA, _PCIE, _NEVER),
    (0x1DB8, "V100 SXM3 32 GB", VOLTA, _HGX, _NEVER),
    (0x1EB8, "T4", TURING, _PCIE, _NEVER),
    (0x20B0, "A100 SXM 40 GB", AMPERE, _HGX, _NEVER),
    (0x20B2, "A100 SXM 80 GB", AMPERE, _HGX, _NEVER),
    (0x20B3, "A100 SXM 64 GB", AMPERE, _HGX, _NEVER),
    (0x20B5, "A100 PCIe 80 GB", AMPERE, _PCIE, _NEVER),
    (0x20B7, "A30", AMPERE, _PCIE, _NEVER),
    (0x20BD, "A800 SXM 40 GB", AMPERE, _HGX, _NEVER),
    (0x20F1, "A100 PCIe 40 GB", AMPERE, _PCIE, _NEVER),
    (0x20F3, "A800 SXM 80 GB", AMPERE, _HGX, _NEVER),
    (0x20F5, "A800 PCIe 80 GB", AMPERE, _PCIE, _NEVER),
    (0x2230, "RTX A6000", AMPERE, _PCIE, _NEVER),
    (0x2235, "A40", AMPERE, _PCIE, _NEVER),
    (0x2236, "A10", AMPERE, _PCIE, _NEVER),
    (0x2237, "A10G", AMPERE, _PCIE, _NEVER),
    (0x25B6, "A16", AMPERE, _PCIE, _NEVER),
    (0x26B1, "RTX 6000 Ada", ADA, _PCIE, _NEVER),
    (0x26B5, "L40", ADA, _PCIE, _NEVER),
    (0x26B7, "L20", ADA, _PCIE, _NEVER),
    (0x26B8, "L40G", ADA, _PCIE, _NEVER),
    (0x26B9, "L40S", ADA, _PCIE, _NEVER),
    (0x26BA, "L20", ADA, _PCIE, _NEVER),
    (0x27B6, "L2", ADA, _PCIE, _NEVER),
    (0x27B8, "L4", ADA, _PCIE, _NEVER),
    (0x2309, "H20", HOPPER, _HGX, _BOARD),
    (0x230C, "H20 NVL16", HOPPER, _HGX, _BOARD),
    (0x230E, "H20 NVL16", HOPPER, _HGX, _BOARD),
    (0x2313, "H100 CNX", HOPPER, _PCIE, _ALONE),
    (0x2321, "H100 NVL", HOPPER, _PCIE, _ALONE),
    (0x2322, "H800 PCIe", HOPPER, _PCIE, _ALONE),
    (0x2324, "H800 SXM", HOPPER, _HGX, _BOARD),
    (0x2328, "H20B", HOPPER, _HGX, _BOARD),
    (0x2329, "H20", HOPPER, _HGX, _BOARD),
    (0x232C, "H20 HBM3e", HOPPER, _HGX, _BOARD),
    (0x2330, "H100 SXM", HOPPER, _HGX, _BOARD),
    (0x2331, "H100 PCIe", HOPPER, _PCIE, _ALONE),
    (0x2335, "H200 SXM", HOPPER, _HGX, _BOARD),
    (0x2336, "H100", HOPPER, _HGX, _BOARD),
    (0x2337, "H100 SXM 64 GB", HOPPER, _HGX, _BOARD),
    (0x2338, "H100 SXM 96 GB", HOPPER, _HGX, _BOARD),
    (0x2339, "H100 SXM 94 GB", HOPPER, _HGX, _BOARD),
    (0x233A, "H800L", HOPPER, _PCIE, _ALONE),
    (0x233B, "H200 NVL", HOPPER, _PCIE, _ALONE),
    (0x233D, "H100 96 GB", HOPPER, _HGX, _BOARD),
    (0x2342, "GH200", HOPPER, _SUPERCHIP, _NEVER),
    (0x2343, "GH200", HOPPER, _SUPERCHIP, _NEVER),
    (0x2345, "GH200", HOPPER, _SUPERCHIP, _NEVER),
    (0x2348, "GH200", HOPPER, _SUPERCHIP, _NEVER),
    (0x2901, "B200", BLACKWELL, _HGX, _BOARD),
    (0x2909, "B200", BLACKWELL, _HGX, _BOARD),
    (0x2920, "B100", BLACKWELL, _HGX, _BOARD),
    (0x2941, "GB200", BLACKWELL, _SUPERCHIP, _NEVER),
    (0x29BC, "B100", BLACKWELL, _HGX, _BOARD),
    (0x29F1, "Blackwell SXM", BLACKWELL, _HGX, _BOARD),
    (0x2BB1, "RTX PRO 6000 Workstation", BLACKWELL, _PCIE, _UNKNOWN),
    (0x2BB2, "RTX PRO 6000D", BLACKWELL, _PCIE, _UNKNOWN),
    (0x2BB3, "RTX PRO 5000", BLACKWELL, _PCIE, _UNKNOWN),
    (0x2BB4, "RTX PRO 6000 Max-Q", BLACKWELL, _PCIE, _UNKNOWN),
    (0x2BB5, "RTX PRO 6000 Server", BLACKWELL, _PCIE, _ALONE),
    (0x2BB9, "RTX PRO 6000D", BLACKWELL, _PCIE, _UNKNOWN),
    (0x2BBC, "RTX PRO 6000D", BLACKWELL, _PCIE, _UNKNOWN),
    (0x2C3A, "RTX PRO 4500 Server", BLACKWELL, _PCIE, _UNKNOWN),
    (0x3182, "B300", BLACKWELL, _HGX, _BOARD),
    (0x31A1, "GB300", BLACKWELL, _SUPERCHIP, _NEVER),
    (0x31C2, "GB300", BLACKWELL, _SUPERCHIP, _NEVER),
    (0x31C3, "GB300", BLACKWELL, _SUPERCHIP, _NEVER),
    (0x31FE, "Blackwell SXM", BLACKWELL, _HGX, _BOARD),
    (0x3224, "Blackwell SXM", BLACKWELL, _HGX, _BOARD),
    (0x1AF1, "NVSwitch (A100)", AMPERE, Form.SWITCH, _NEVER),
    (0x22A3, "NVSwitch (H100)", HOPPER, Form.SWITCH, _BOARD),
)

PARTS: dict[int, GpuPart] = {
    device: GpuPart(
        name=f"NVIDIA {name}", architecture=architecture, form=form, confidential=confidential
    )
    for device, name, architecture, form, confidential in _PARTS
}

# Which chip an id belongs to: NVIDIA gives each a range. (first, last, architecture)
_CHIPS = (
    (0x1D80, 0x1DFF, VOLTA),
    (0x1E00, 0x1FFF, TURING),
    (0x2080, 0x20FF, AMPERE),
    (0x2180, 0x21FF, TURING),
    (0x2200, 0x227F, AMPERE),
    (0x2300, 0x237F, HOPPER),
    (0x2400, 0x25FF, AMPERE),
    (0x2680, 0x28FF, ADA),
    (0x2900, 0x29FF, BLACKWELL),
    (0x2B80, 0x2C7F, BLACKWELL),
    (0x2D00, 0x2DFF, BLACKWELL),
    (0x2F00, 0x2F7F, BLACKWELL),
    (0x3180, 0x327F, BLACKWELL),
)
_FIRST_VOLTA = 0x1D80  # what is older is no more confidential than Volta is
_BEFORE_HOPPER = frozenset({VOLTA, TURING, AMPERE, ADA})


def part_of(device: int | None) -> GpuPart:
    """What is known of a part by its device id; nothing of an id that is not known."""
    if device is None:
        return GpuPart()
    if device in PARTS:
        return PARTS[device]
    architecture = next((name for first, last, name in _CHIPS if first <= device <= last), None)
    old = device < _FIRST_VOLTA or architecture in _BEFORE_HOPPER
    return GpuPart(architecture=architecture, confidential=_NEVER if old else _UNKNOWN)
