"""QEMU's last words: which of them accuse a device of the host's, and which one."""

from __future__ import annotations

import pytest

from agent.enclaves.last_words import accuse, accused, speaks_of_platform
from agent.model.ids import Bdf

ONE, TWO = Bdf("0000:4f:00.0"), Bdf("0000:52:00.0")
QEMU = "QEMU ended (exit status 1): qemu-system-x86_64: "
DEVICE = f'-device {{"driver":"vfio-pci","id":"gpu0","host":"{ONE}","iommufd":"iommufd0"}}: '

PLATFORM = {
    "snp start": "sev_snp_launch_start: SNP_LAUNCH_START ret=-5 fw_error=3 'Platform busy'",
    "snp cpuid": "sev_snp_launch_update: SNP_LAUNCH_UPDATE ret=-22 fw_error=22 'Invalid param'",
    "snp finish": "sev_snp_launch_finish: SNP_LAUNCH_FINISH ret=-5 fw_error=8",
    "sev init": "-accel kvm: sev_common_kvm_init: failed to initialize ret=-16 fw_error=1",
    "sev object": '-object {"qom-type":"sev-snp-guest","id":"sev0"}: policy must be set',
    "sev device": "-accel kvm: sev_kvm_init: Failed to open /dev/sev 'Permission denied'",
    "cpuid policy": "SEV-SNP: CPUID validation failed for function 0x80000008, index 0x0, ebx",
    "cpuid bits": "warning: x\nqemu-system-x86_64: TDX forcibly sets the feature: CPUID.07H:EBX",
    "tdx vm": "TDX ioctl KVM_TDX_INIT_VM failed, hw_errors: 0xc000010000000000: No space left",
    "tdx firmware": "Unsupported TDVF section 9",
    "tdx by kvm": "-accel kvm: vm-type TDX not supported by KVM",
    "features": "Host doesn't support requested features",
    "model": "unable to find CPU model 'EPYC-v4'",
    "phys bits": "phys-bits too low (40): cannot represent the address space",
    "kvm": "-accel kvm: Could not access KVM kernel module: No such file or directory",
    "region": "kvm_set_user_memory_region: KVM_SET_USER_MEMORY_REGION2 failed, slot=2",
    "ram": "cannot set up guest memory 'mem0': Cannot allocate memory",
    "prealloc": "qemu_prealloc_mem: preallocating memory failed: Bad address",
    "memfd": "unable to map backing store for guest RAM: Cannot allocate memory",
    "locked": "mlock: Cannot allocate memory\nqemu-system-x86_64: locking memory failed",
}
CONFIGURATION = {
    "no property": DEVICE + "Property 'vfio-pci.x-no-such' not found",
    "option": "-blockdev {}: Parameter 'driver' is missing",
    "no bus": DEVICE + "Bus 'rp9' not found",
    "slot": DEVICE
    + "PCI: slot 22 function 0 not available for vfio-pci, in use by pcie-root-port",
    "object": "-object iommufd,id=iommufd0: invalid object type: iommufd",
    "a file": "-blockdev {}: Could not open '/var/lib/models/1': Permission denied",
    "a tap": "-netdev tap,id=n0,fd=9: TUNGETIFF ioctl() failed: Bad file descriptor",
    "no words": "",
}
HOST = {
    "group": DEVICE + f"vfio {ONE}: group 58 is not viable",
    "discard": f"vfio {ONE}: failed to setup container for group 58: Cannot set discarding of RAM",
    "map": f"vfio_container_dma_map(0x55, 0x0, 0x80000000, 0x7f) = -12\n{DEVICE}vfio {ONE}: "
    "memory listener initialization failed: Region pc.ram: Cannot allocate memory",
    "mapping": "vfio_dma_map(0x55d0, 0x100000, 0x7ff00000, 0x7fc3) = -12 (Cannot allocate memory)",
    "no node": DEVICE + f"vfio /sys/bus/pci/devices/{ONE}/vfio-dev: couldn't open directory",
    "no cdev": DEVICE + f"vfio {ONE}: failed to find vfio-dev/vfioX/dev",
    "locked out": DEVICE + f"vfio {ONE}: vfio-dev: Failed to open /dev/vfio/devices/vfio3",
    "busy": DEVICE + f"vfio {ONE}: error bind device fd=31 to iommufd=30: Device or resource busy",
    "no iommufd": DEVICE + f"vfio {ONE}: /dev/iommu opening failed: No such file or directory",
    "reserved": DEVICE
    + f"vfio {ONE}: [iommufd=30] error attach {ONE} (31) to id=2: Invalid argument",
    "limits": DEVICE + f"vfio {ONE}: error getting device from group 58: Too many open files",
}
GUILTY = {
    "no open": (
        DEVICE + f"vfio {ONE}: error bind device fd=31 to iommufd=30: Input/output error",
        1,
    ),
    "gone": (DEVICE + f"vfio {ONE}: error getting device from group 58: No such device", 1),
    "info": (DEVICE + f"vfio {ONE}: failed to get device info: Input/output error", 1),
    "config": (DEVICE + f"vfio {ONE}: failed to read device config space", 1),
    "asleep": (f"vfio {ONE}: Unable to power on device, stuck in D3", 1),
    "silent": (f"vfio {TWO}: error bind device fd=33 to iommufd=30: Connection timed out", 2),
    "both": (f"vfio {ONE}: failed to get device info: I/O\nvfio {TWO}: failed to get region 7", 3),
    "unnamed": ("vfio: error reading device configuration: Input/output error", 3),
    "remark": (f"warning: vfio {TWO}: no NUMA memory\nvfio {ONE}: failed to get region info", 1),
}
OF = {1: (ONE,), 2: (TWO,), 3: (ONE, TWO)}


@pytest.mark.parametrize("name", PLATFORM)
def test_the_platform_is_not_the_devices_doing(name: str) -> None:
    words = QEMU + PLATFORM[name]
    assert speaks_of_platform(words)
    assert (accuse(words), accused(words, (ONE, TWO))) == (False, ())
    both = f"{words}\nqemu-system-x86_64: vfio {ONE}: failed to get device info"
    assert accused(both, (ONE, TWO)) == (), "a device that is torn down complains too"


@pytest.mark.parametrize("name", {**CONFIGURATION, **HOST})
def test_what_the_host_or_the_configuration_is_to_blame_for_accuses_no_device(name: str) -> None:
    words = QEMU + {**CONFIGURATION, **HOST}[name]
    assert (accuse(words), accused(words, (ONE, TWO))) == (False, ())


@pytest.mark.parametrize("name", GUILTY)
def test_a_device_that_fails_by_itself_is_accused_and_no_other(name: str) -> None:
    words, whose = GUILTY[name]
    assert accuse(QEMU + words)
    assert accused(QEMU + words, (ONE, TWO)) == OF[whose]
