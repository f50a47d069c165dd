"""The VMs of the golden files, over files and a card that each test chooses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

from agent.enclaves.mmio import window_mib
from agent.enclaves.spec import (
    Disk,
    FileSource,
    Forward,
    IgvmFile,
    InheritedFile,
    Nic,
    PathFile,
    PlainTee,
    SevSnpTee,
    SimulatedTee,
    TapNic,
    TdxTee,
    TeeVariant,
    UnixQuotes,
    UserNic,
    VmAccel,
    VmSpec,
    VsockQuotes,
)
from agent.model.ids import Bdf, EnclaveId
from agent.model.pci import Bar

MAC = "02:00:0a:d7:00:02"
CMDLINE = (
    "readonly=on pci=realloc,nocrs modprobe.blacklist=nouveau nouveau.modeset=0 "
    "root=/dev/mapper/root roothash=" + "5a" * 32 + " tinfoil-config-hash=" + "c3" * 32
)

SNP = SevSnpTee(cbitpos=51, reduced_phys_bits=1)
TDX = TdxTee(VsockQuotes())
H100_BARS = (
    Bar(index=0, size_bytes=16 << 20, is_64bit=True, prefetchable=False),
    Bar(index=2, size_bytes=128 << 30, is_64bit=True, prefetchable=True),
    Bar(index=4, size_bytes=32 << 20, is_64bit=True, prefetchable=True),
)
SWITCH_BARS = (Bar(index=0, size_bytes=32 << 20, is_64bit=True, prefetchable=False),)

# name of the file, writable -> how QEMU gets it
Files = Callable[[str, bool], FileSource]


def user_nic(*forwards: Forward) -> UserNic:
    return UserNic(
        mac=MAC,
        subnet="10.0.2.0/24",
        gateway="10.0.2.2",
        guest_address="10.0.2.15",
        forwards=forwards,
    )


def base(files: Files, nic: Nic, qmp_socket: Path, accel: VmAccel = VmAccel.TCG) -> VmSpec:
    return VmSpec(
        enclave_id=EnclaveId("abcd2345"),
        launch_uuid="6b1f9f0e-55a4-4a6e-9d1c-0f5d2a7c3e11",
        layout="virtio-pci",
        accel=accel,
        tee=PlainTee(),
        memory_mib=256,
        vcpus=2,
        kernel=files("kernel", False),
        initrd=files("initrd", False),
        cmdline=CMDLINE,
        root_disk=Disk(files("root", False)),
        config_disk=Disk(files("config", False)),
        external_config_disk=Disk(files("external", False)),
        nic=nic,
        qmp_socket=qmp_socket,
    )


def with_data_disks(spec: VmSpec, files: Files) -> VmSpec:
    return dataclasses.replace(
        spec,
        models=(Disk(files("model1", False)), Disk(files("model2", False))),
        volumes=(Disk(files("volume1", True), read_only=False),),
    )


def simulated(spec: VmSpec, files: Files, psp_socket: Path) -> VmSpec:
    return dataclasses.replace(
        spec, tee=SimulatedTee(psp_socket), firmware=files("firmware", False)
    )


def with_gpus(spec: VmSpec) -> VmSpec:
    return dataclasses.replace(
        spec,
        gpus=(Bdf("0000:18:00.0"), Bdf("0000:2a:00.0")),
        switches=(Bdf("0000:05:00.0"),),
    )


def with_board(spec: VmSpec, gpus: int, switches: int = 0) -> VmSpec:
    """With that many H100s and NVSwitches, reached through iommufd."""
    bars = [H100_BARS] * gpus + [SWITCH_BARS] * switches
    return dataclasses.replace(
        spec,
        gpus=tuple(Bdf(f"0000:{0x18 + 16 * n:02x}:00.0") for n in range(gpus)),
        switches=tuple(Bdf(f"0000:{5 + n:02x}:00.0") for n in range(switches)),
        mmio_window_mib=window_mib(bars) if bars else None,
        iommufd=bool(bars),
    )


def confidential(spec: VmSpec, files: Files, tee: TeeVariant) -> VmSpec:
    return dataclasses.replace(spec, tee=tee, accel=VmAccel.KVM, firmware=files("firmware", False))


def imagined() -> Files:
    """Descriptors for what the agent opens and hashes, paths for models and volumes."""
    numbers: Iterator[int] = iter(range(10, 20))

    def files(name: str, writable: bool) -> FileSource:
        if name.startswith(("model", "volume")):
            return PathFile(Path("/srv/models") / f"{name}.raw")
        return InheritedFile(next(numbers))

    return files


RUN = Path("/run/enclave-agent/abcd2345/qmp.sock")
TAP = TapNic("enc-abcd2345", MAC)
HTTPS = Forward("127.215.0.2", 20001, 443)
PLAIN = Forward("127.215.0.2", 20000, 80)


def tee_spec(kind: str, files: Files, nic: Nic, run: Path) -> VmSpec:
    """A VM of a kind of TEE, without devices of the host."""
    spec = base(files, nic, run, VmAccel.KVM)
    match kind:
        case "snp":
            return dataclasses.replace(confidential(spec, files, SNP), numa_node=1)
        case "tdx":
            return confidential(spec, files, TDX)
        case "tdx-unix":
            return confidential(spec, files, TdxTee(UnixQuotes(Path("/run/qgs.socket"))))
        case "simulated":
            return simulated(spec, files, run.with_name("sim-psp"))
        case "plain":
            return spec
    raise AssertionError(kind)


def debug(spec: VmSpec) -> VmSpec:
    """Of a debug release."""
    return dataclasses.replace(
        spec, debug_console=True, cmdline=f"{spec.cmdline} tinfoil-debug=on"
    )


def with_everything(kind: str, files: Files, nic: Nic, run: Path) -> VmSpec:
    """A whole board, models and volumes."""
    spec = dataclasses.replace(tee_spec(kind, files, nic, run), memory_mib=819200, vcpus=96)
    return with_data_disks(with_board(spec, 8, 4), files)


# Devices of the public launcher's layouts for a trust domain: GPUs and switches.
PUBLIC = {"hopper": (8, 4), "blackwell": (8, 0), "single": (1, 0)}


def public_board(layout: str, files: Files, nic: Nic, run: Path) -> VmSpec:
    """A trust domain whose root ports are the public launcher's, with models."""
    spec = with_data_disks(with_board(tee_spec("tdx", files, nic, run), *PUBLIC[layout]), files)
    return dataclasses.replace(spec, root_ports=layout)


def boards() -> dict[str, VmSpec]:
    """Every kind of TEE, with no GPU, one, and a whole board."""
    found = {}
    for kind in ("snp", "tdx", "simulated", "plain"):
        found[f"{kind}-kvm-tap-0-gpus"] = tee_spec(kind, imagined(), TAP, RUN)
        found[f"{kind}-kvm-tap-1-gpu"] = with_board(tee_spec(kind, imagined(), TAP, RUN), 1)
        found[f"{kind}-kvm-tap-8-gpus-everything"] = with_everything(kind, imagined(), TAP, RUN)
    for layout in PUBLIC:
        found[f"tdx-kvm-tap-{layout}"] = public_board(layout, imagined(), TAP, RUN)
    found["snp-kvm-tap-debug"] = debug(tee_spec("snp", imagined(), TAP, RUN))
    found["plain-kvm-tap-8-gpus-everything"] = debug(found["plain-kvm-tap-8-gpus-everything"])
    found["tdx-unix-kvm-user"] = tee_spec("tdx-unix", imagined(), user_nic(HTTPS), RUN)
    return found


def of_one_file(kind: str) -> VmSpec:
    """A confidential VM that is launched of one measured file."""
    return dataclasses.replace(
        tee_spec(kind, imagined(), TAP, RUN),
        kernel=None,
        initrd=None,
        firmware=None,
        cmdline="",
        igvm=IgvmFile(InheritedFile(30), bytes.fromhex("c3" * 32)),
    )


def golden_specs() -> dict[str, VmSpec]:
    """By the golden file's name."""
    return _first_specs() | boards()


def _first_specs() -> dict[str, VmSpec]:
    data_files, firmware_files = imagined(), imagined()
    return {
        "plain-tcg-tap": base(imagined(), TAP, RUN),
        "plain-kvm-user": base(imagined(), user_nic(HTTPS), RUN, VmAccel.KVM),
        "plain-tcg-user-models-volumes": with_data_disks(
            base(data_files, user_nic(PLAIN, HTTPS), RUN), data_files
        ),
        "simulated-tcg-user": simulated(
            base(firmware_files, user_nic(HTTPS), RUN), firmware_files, RUN.with_name("sim-psp")
        ),
        "plain-kvm-tap-gpus": with_gpus(base(imagined(), TAP, RUN, VmAccel.KVM)),
    }
