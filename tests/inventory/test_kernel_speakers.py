"""Whoever says it in the kernel's log, under whatever name: PCI core, IOMMU, NVIDIA's drivers.

The lines are of the forms that Linux prints (drivers/pci, drivers/iommu) and that NVIDIA's
documents of Xid and SXid errors show, with addresses of this suite.
"""

from __future__ import annotations

import pytest

from agent.inventory.findings import told
from agent.inventory.health import HealthRecord, health_of, note
from agent.inventory.kernel_messages import overheard
from agent.inventory.nvml.values import NvmlEvent
from agent.model.gpu import HealthAction, Severity
from agent.model.ids import Bdf
from agent.model.pci import PciKind
from simulator.rows import instant
from tests.fakes.gpus import BDF, OTHER, function

A, S = HealthAction, Severity
PORT, SWITCH, ELSEWHERE = Bdf("0000:17:01.0"), Bdf("0000:07:00.0"), Bdf("0001:18:00.0")
HOST = [
    function(BDF, ports=(PORT,), driver="nvidia"),
    function(OTHER, driver="vfio-pci"),
    function(SWITCH, kind=PciKind.SWITCH, driver="nvidia-nvswitch"),
]


def heard(text: str, level: int = 3) -> dict[str, tuple[str, Severity, HealthAction]]:
    told = overheard(f"{level},7,9,-;{text}\n SUBSYSTEM=pci\n".encode(), HOST)
    return {str(bdf): (one.code, one.severity, one.action) for bdf, one in told}


@pytest.mark.parametrize("driver", ["nvidia", "nouveau", "pci-stub", "nvgrace-gpu-vfio-pci", "xe"])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("not ready 65535ms after resume; giving up", ("kernel_not_ready", S.ERROR, A.RESET)),
        (
            "Unable to change power state from D3hot to D0, device inaccessible",
            ("kernel_inaccessible", S.ERROR, A.RESET),
        ),
        (
            "Refused to change power state from D0 to D3hot",
            ("kernel_power_state", S.WARNING, A.WATCH),
        ),
        (
            "BAR 1 [mem size 0x2000000000 64bit pref]: failed to assign",
            ("kernel_bar_refused", S.WARNING, A.WATCH),
        ),
        (
            "BAR 1: can't reserve [mem 0x6000000000-0x7fffffffff 64bit pref]",
            ("kernel_bar_refused", S.WARNING, A.WATCH),
        ),
    ],
)
def test_the_pci_core_is_understood_under_the_name_of_any_driver(
    driver: str, text: str, expected: tuple[str, Severity, HealthAction]
) -> None:
    assert heard(f"{driver} {OTHER}: {text}", level=4) == {OTHER: expected}


def test_a_probe_that_failed_is_told_in_both_forms_of_it() -> None:
    expected = {OTHER: ("kernel_probe_failed", S.WARNING, A.WATCH)}
    assert heard("nvidia: probe of 0000:2a:00.0 failed with error -1", level=4) == expected
    assert heard("nvidia 0000:2a:00.0: probe with driver nvidia failed with error -1") == expected


def test_a_port_speaks_of_what_is_below_it_and_a_card_of_all_its_functions() -> None:
    down = heard(f"pcieport {PORT}: Data Link Layer Link Active not set in 100 msec", level=6)
    assert down == {BDF: ("kernel_link_down", S.WARNING, A.WATCH)}
    audio = heard("vfio-pci 0000:2a:00.1: not ready 65535ms after FLR; giving up", level=4)
    assert audio == {OTHER: ("kernel_not_ready", S.ERROR, A.RESET)}


@pytest.mark.parametrize(
    "text",
    [
        "vfio-pci 0000:2a:00.0: PCIe Bus Error: severity=Corrected, type=Data Link Layer",
        "vfio-pci 0000:2a:00.0:   device [10de:2330] error status/mask=00001000/0000e000",
        "vfio-pci 0000:2a:00.0:    [12] Timeout",
        "vfio-pci 0000:2a:00.0: AER:    [12] Timeout",
    ],
)
def test_what_aer_counts_is_left_to_its_counters(text: str) -> None:
    assert heard(text) == {}


FAULT = ("iommu_fault", S.WARNING, A.WATCH)
LATE = ("iommu_timeout", S.ERROR, A.RESET)
HANGS = ("iommu_error", S.WARNING, A.WATCH)
PAGE = "address=0xfffffff00000 flags=0x0020"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"AMD-Vi: Event logged [IO_PAGE_FAULT device=2a:00.0 domain=0x000f {PAGE}]", FAULT),
        (f"AMD-Vi: Event logged [IO_PAGE_FAULT device=0000:2a:00.0 domain=0x000f {PAGE}]", FAULT),
        (f"vfio-pci 0000:2a:00.0: AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x1 {PAGE}]", FAULT),
        (f"vfio-pci 0000:2a:00.0: Event logged [IO_PAGE_FAULT domain=0x001f {PAGE}]", FAULT),
        (f"iommu ivhd1: AMD-Vi: Event logged [RMP_PAGE_FAULT device=2a:00.0 {PAGE}]", FAULT),
        ("iommu ivhd0: AMD-Vi: Event logged [IOTLB_INV_TIMEOUT device=2a:00.0 address=0x4]", LATE),
        ("iommu ivhd0: AMD-Vi: Event logged [IOTLB_INV_TIMEOUT device=0000:2a:00.0 a=0x4]", LATE),
        (
            "DMAR: [DMA Read NO_PASID] Request device [2a:00.0] fault addr 0xdf000000 "
            "[fault reason 0x06] PTE Read access is not set",
            FAULT,
        ),
        ("DMAR:[DMA Write] Request device [2a:00.0] fault addr 6df084000", FAULT),
        ("DMAR: [INTR-REMAP] Request device [2a:00.0] fault index 0x25", FAULT),
        ("DMAR: VT-d detected Invalidation Time-out Error: SID 2a00", LATE),
        (
            "DMAR: QI PRIOR: Device-TLB Invalidation qw0 = 0x2a002a0000000003, qw1 = 0x7ff",
            LATE,
        ),
        (
            "DMAR: QI PRIOR: PASID-based Device-TLB Invalidation qw0 = 0x2a000008, qw1 = 0x7",
            LATE,
        ),
    ],
)
def test_the_iommu_names_a_device_in_its_own_ways(
    text: str, expected: tuple[str, Severity, HealthAction]
) -> None:
    assert heard(text) == {OTHER: expected}


@pytest.mark.parametrize(
    "text",
    [
        "AMD-Vi: Completion-Wait loop timed out",
        "iommu ivhd0: AMD-Vi: Completion-Wait loop timed out",
        "DMAR: VT-d detected Invalidation Time-out Error: SID 0",
        "DMAR: VT-d detected Invalidation Time-out Error: SID ffff",
        "DMAR: VT-d detected Invalidation Queue Error: Reason f",
    ],
)
def test_an_iommu_that_hangs_without_a_name_is_told_of_every_device(text: str) -> None:
    assert heard(text) == {BDF: HANGS, OTHER: HANGS, SWITCH: HANGS}


@pytest.mark.parametrize(
    "text",
    [
        "DMAR: DRHD: handling fault status reg 2",
        "DMAR: QI HEAD: UNKNOWN qw0 = 0x0, qw1 = 0x0",
        "DMAR: QI PRIOR: UNKNOWN qw0 = 0x0, qw1 = 0x0",
        "DMAR: Invalidation Time-out Error (ITE) cleared",
        f"AMD-Vi: Event logged [IO_PAGE_FAULT device=0001:2a:00.0 domain=0x000f {PAGE}]",
        "DMAR: [DMA Read] Request device [2b:00.0] fault addr 0xdf000000",
        "AMD-Vi: AMD IOMMUv2 loaded and initialized",
    ],
)
def test_what_is_of_another_device_or_in_passing_is_of_none(text: str) -> None:
    assert heard(text) == {}


@pytest.mark.parametrize(
    ("text", "whose", "expected"),
    [
        (
            "NVRM: Xid (PCI:0000:18:00): 119, pid=77, name=x, Timeout waiting for RPC from GSP!",
            BDF,
            ("xid_119", S.ERROR, A.RESET),
        ),
        ("NVRM: Xid (0000:18:00): 31, Ch 0000000b", BDF, ("xid_31", S.INFO, A.WATCH)),
        ("NVRM: Xid (PCI:0000:18:00): 160, 0x1", BDF, ("xid_160", S.INFO, A.WATCH)),
        ("NVRM: Xid (PCI:0000:18:00): 4711, new", BDF, ("xid_4711", S.WARNING, A.WATCH)),
        (
            "NVRM: GPU at PCI:0000:18:00: GPU has fallen off the bus.",
            BDF,
            ("xid_79", S.ERROR, A.REBOOT),
        ),
        (
            "NVRM: GPU 0000:18:00.0: GPU has fallen off the bus.",
            BDF,
            ("xid_79", S.ERROR, A.REBOOT),
        ),
        (
            "NVRM: GPU 0000:18:00.0: RmInitAdapter failed! (0x62:0x40:2192)",
            BDF,
            ("nvidia_init_failed", S.ERROR, A.RESET),
        ),
        (
            "NVRM: GPU 0000:18:00.0: rm_init_adapter failed, device minor number 0",
            BDF,
            ("nvidia_init_failed", S.ERROR, A.RESET),
        ),
        (  # no address: it may be any that the driver has
            "NVRM: RmInitAdapter failed! (0x26:0x65:1457)",
            BDF,
            ("nvidia_init_failed", S.WARNING, A.WATCH),
        ),
        (
            "NVRM: BAR1 is 0M @ 0x0 (PCI:0000:18:00.0)",
            BDF,
            ("kernel_bar_refused", S.WARNING, A.WATCH),
        ),
        (
            "nvidia-nvswitch0: SXid (PCI:0000:07:00.0): 20034, Fatal, Link 30 LTSSM Fault Up",
            SWITCH,
            ("sxid_20034", S.ERROR, A.RESET),
        ),
        (
            "nvidia-nvswitch2: SXid (PCI:0000:07:00.0): 12028, Non-fatal, Link 32 egress error",
            SWITCH,
            ("sxid_12028", S.WARNING, A.WATCH),
        ),
    ],
)
def test_nvidias_drivers_are_heard_of_gpus_and_switches(
    text: str, whose: str, expected: tuple[str, Severity, HealthAction]
) -> None:
    assert heard(text, level=4) == {whose: expected}


@pytest.mark.parametrize(
    "text",
    [
        "NVRM: loading NVIDIA UNIX Open Kernel Module for x86_64  580.95.05",
        "NVRM: GPU at PCI:0000:18:00: GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77",
        "nvidia-nvswitch0: SXid (PCI:0000:07:00.0): 20034, Severity 1 Engine instance 30",
        "nvidia-nvswitch0: SXid (PCI:0000:07:00.0): 20034, Data {0x00000030, 0x00000030}",
        "nvidia-nvswitch0: SXid (PCI:0000:07:00.0): garbled, Fatal",
    ],
)
def test_what_the_driver_says_in_passing_is_nothing(text: str) -> None:
    assert heard(text, level=4) == {}


def test_an_xid_that_nvml_and_the_log_both_tell_is_one() -> None:
    event = told(NvmlEvent(kind="xid", bdf=BDF, data=95))
    line = b"3,7,9,-;NVRM: Xid (PCI:0000:18:00): 95, pid=1, Uncontained error\n"
    ((_, said),) = overheard(line, HOST[:1])
    record = HealthRecord()
    for one in (event, said, event, said):
        record = note(record, one, instant())
    (reason,) = health_of(record).reasons
    assert (reason.code, reason.detail) == ("xid_95", "XID 95: reset the GPU (2 times)")
