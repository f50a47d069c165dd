"""What a VM is made of, as one value: everything that its command line needs, and no I/O.

Invariant: a `VmSpec` that exists is complete and its parts are well-formed in themselves, so that
`argv.build_argv` can only refuse what depends on the layout. Nothing secret is ever in it: secrets
reach the guest on the external config disk, of which only the file is named here.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from agent.errors import AgentError
from agent.model.ids import Bdf, EnclaveId

_ENCLAVE_ID = re.compile(r"[a-z2-7]{8}")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_BDF = re.compile(r"[0-9a-f]{4}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_INTERFACE = re.compile(r"[a-z0-9][a-z0-9_-]{0,14}")
UNIX_PATH_MAX = 107


class SpecError(AgentError):
    """A part of a VM is impossible. The text names the part and the rule."""

    @property
    def code(self) -> str:
        return "vm_spec_invalid"


class VmAccel(StrEnum):
    """How the guest's instructions run."""

    KVM = "kvm"
    TCG = "tcg"


@dataclass(frozen=True, slots=True)
class InheritedFile:
    """A file that QEMU inherits open under this descriptor number (never 0, 1 or 2).

    Disks given so must have been opened O_RDONLY for a read-only disk, O_RDWR for a writable one:
    QEMU takes the descriptor only if the access mode is exactly the one that it wants.
    """

    fd: int

    def __post_init__(self) -> None:
        if self.fd < 3:
            raise SpecError(f"descriptor {self.fd} cannot be inherited as a file of the VM")


@dataclass(frozen=True, slots=True)
class PathFile:
    """A file that QEMU opens itself."""

    path: Path

    def __post_init__(self) -> None:
        _check_path(self.path, "a file of the VM")


FileSource = InheritedFile | PathFile


@dataclass(frozen=True, slots=True)
class Disk:
    """A raw disk."""

    source: FileSource
    read_only: bool = True


@dataclass(frozen=True, slots=True)
class PlainTee:
    """No confidential computing: a plain VM."""


@dataclass(frozen=True, slots=True)
class SimulatedTee:
    """A plain VM whose secure processor is played by the agent, over this socket."""

    psp_socket: Path

    def __post_init__(self) -> None:
        _check_socket(self.psp_socket, "the simulated processor's socket")


@dataclass(frozen=True, slots=True)
class SevSnpTee:
    """An SEV-SNP guest. Where the processor's C-bit is, and how many physical address bits
    encryption takes, is what the QEMU that runs the guest says of this host.
    """

    cbitpos: int
    reduced_phys_bits: int

    def __post_init__(self) -> None:
        if not 32 <= self.cbitpos <= 63:
            raise SpecError(f"the C-bit cannot be at position {self.cbitpos}")
        if not 0 <= self.reduced_phys_bits <= 32:
            raise SpecError(f"encryption cannot take {self.reduced_phys_bits} address bits")


@dataclass(frozen=True, slots=True)
class VsockQuotes:
    """The host's quote generation service on a vsock; cid 2 is the host."""

    cid: int = 2
    port: int = 4050

    def __post_init__(self) -> None:
        if not (0 <= self.cid < 1 << 32 and 0 < self.port < 1 << 32):
            raise SpecError(f"vsock {self.cid}:{self.port} cannot be a quote service's address")


@dataclass(frozen=True, slots=True)
class UnixQuotes:
    """The host's quote generation service on a unix socket."""

    path: Path

    def __post_init__(self) -> None:
        _check_socket(self.path, "the quote service's socket")


QuoteService = VsockQuotes | UnixQuotes


@dataclass(frozen=True, slots=True)
class TdxTee:
    """A trust domain of Intel TDX; its quotes are made by this service."""

    quotes: QuoteService


ConfidentialTee = SevSnpTee | TdxTee
TeeVariant = PlainTee | SimulatedTee | ConfidentialTee


@dataclass(frozen=True, slots=True)
class IgvmFile:
    """The one measured file that a confidential VM is launched of (IGVM).

    `config_sha256`: of the config's bytes, which the guest holds against its config disk.
    """

    source: FileSource
    config_sha256: bytes

    def __post_init__(self) -> None:
        if len(self.config_sha256) != 32:
            raise SpecError("the SHA-256 of a config has 32 bytes")


@dataclass(frozen=True, slots=True)
class TapNic:
    """A card on an existing tap link, which QEMU opens by its name, or inherits open (`fd`)."""

    name: str
    mac: str
    fd: int | None = None

    def __post_init__(self) -> None:
        if not _INTERFACE.fullmatch(self.name):
            raise SpecError(f"{self.name!r} cannot be the name of a tap link")
        _check_mac(self.mac)


@dataclass(frozen=True, slots=True, order=True)
class Forward:
    """A TCP listener of the host that user-mode networking forwards to a port of the guest."""

    host_address: str
    host_port: int
    guest_port: int

    def __post_init__(self) -> None:
        _check_ipv4(self.host_address, "a forward's host address")
        for port in (self.host_port, self.guest_port):
            if not 1 <= port <= 65535:
                raise SpecError(f"port {port} of a forward is not between 1 and 65535")


@dataclass(frozen=True, slots=True)
class UserNic:
    """A card on QEMU's user-mode network. The guest's address is the same in every VM.

    `restricted`: it can open no connection beyond that network; forwards reach it still.
    """

    mac: str
    subnet: str
    gateway: str
    guest_address: str
    forwards: tuple[Forward, ...]
    restricted: bool = False

    def __post_init__(self) -> None:
        _check_mac(self.mac)
        _check_ipv4(self.gateway, "the gateway")
        _check_ipv4(self.guest_address, "the guest's address")
        try:
            ipaddress.IPv4Network(self.subnet)
        except ValueError:
            raise SpecError(f"{self.subnet!r} is not an IPv4 subnet") from None


Nic = TapNic | UserNic


@dataclass(frozen=True, slots=True, kw_only=True)
class VmSpec:
    """One VM. `cmdline` is the manifest's, exactly; `layout` names the machine that it expects.

    `gpus` and `switches` are PCI addresses of the host, in the order that the guest is to see;
    `mmio_window_mib` is the 64-bit window that their BARs need (`mmio.window_mib`), and `iommufd`
    how they are reached. `root_ports`: those of the public launcher by their name, in the place of
    the layout's own; a trust domain's alone. `numa_node`: where the host is to take a confidential
    guest's memory.
    `stop_socket` is a second monitor, for who stops the VM without the agent. `debug_console`: of
    a debug release, whose guest needs hvc0 and prints there. With `igvm` there is no firmware,
    kernel, initrd or command line. `filtered`: its system calls are filtered already by whoever
    starts it. `iommu_fd` and `device_fds`: /dev/iommu and the devices' own nodes, inherited open.
    """

    enclave_id: EnclaveId
    launch_uuid: str
    layout: str
    accel: VmAccel
    tee: TeeVariant
    memory_mib: int
    vcpus: int
    kernel: FileSource | None
    initrd: FileSource | None
    cmdline: str
    root_disk: Disk
    config_disk: Disk
    external_config_disk: Disk
    models: tuple[Disk, ...] = ()
    volumes: tuple[Disk, ...] = ()
    nic: Nic
    qmp_socket: Path
    stop_socket: Path | None = None
    console_bytes: int = 1 << 20
    firmware: FileSource | None = None
    igvm: IgvmFile | None = None
    gpus: tuple[Bdf, ...] = ()
    switches: tuple[Bdf, ...] = ()
    mmio_window_mib: int | None = None
    iommufd: bool = False
    numa_node: int | None = None
    root_ports: str | None = None
    debug_console: bool = False
    filtered: bool = False
    iommu_fd: int | None = None
    device_fds: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not _ENCLAVE_ID.fullmatch(self.enclave_id):
            raise SpecError("the enclave id must be 8 of a-z and 2-7")
        if not _UUID.fullmatch(self.launch_uuid):
            raise SpecError("the launch uuid must be a lower-case UUID")
        if self.memory_mib < 1 or self.vcpus < 1:
            raise SpecError("a VM needs at least 1 MiB of memory and 1 vCPU")
        if self.console_bytes < 1 or self.console_bytes & (self.console_bytes - 1):
            raise SpecError("the console ring's size must be a power of two")
        if not self.cmdline.isprintable():
            raise SpecError("the kernel command line must be one line of printable text")
        for path in filter(None, (self.qmp_socket, self.stop_socket)):
            _check_socket(path, "the QMP socket")
        _check_boot(self)
        for bdf in (*self.gpus, *self.switches):
            if not _BDF.fullmatch(bdf):
                raise SpecError(f"{bdf!r} is not a PCI address (DDDD:BB:DD.F)")
        if self.mmio_window_mib is not None and self.mmio_window_mib < 1:
            raise SpecError("a window for BARs has at least 1 MiB")
        if self.device_fds and len(self.device_fds) != len(self.gpus) + len(self.switches):
            raise SpecError("either each device of the host is given as a descriptor, or none is")
        if self.numa_node is not None and self.numa_node < 0:
            raise SpecError(f"there is no NUMA node {self.numa_node}")
        if self.root_ports is not None and not isinstance(self.tee, TdxTee):
            raise SpecError("only a trust domain has the root ports of the public launcher")
        if isinstance(self.tee, ConfidentialTee):
            _check_confidential(self)


def _check_boot(spec: VmSpec) -> None:
    """Either one measured file, or a kernel and its initrd, with a firmware if it is measured."""
    parts = (spec.kernel, spec.initrd, spec.firmware)
    if spec.igvm is not None:
        if not isinstance(spec.tee, ConfidentialTee):
            raise SpecError("only a confidential VM is launched of one measured file")
        if any(parts) or spec.cmdline:
            raise SpecError(
                "one measured file has firmware, kernel, initrd and command line in it"
            )
        return
    if spec.kernel is None or spec.initrd is None:
        raise SpecError("a VM boots a kernel and an initrd")
    if spec.firmware is None and not isinstance(spec.tee, PlainTee):
        raise SpecError("a VM that is measured needs a firmware")


def _check_confidential(spec: VmSpec) -> None:
    if spec.accel is not VmAccel.KVM:
        raise SpecError("a confidential VM runs under KVM only")
    if not (spec.gpus or spec.switches):
        return
    if not spec.iommufd:
        raise SpecError(
            "the devices of a confidential VM need iommufd: type1 has too few mappings"
        )
    if spec.mmio_window_mib is None:
        raise SpecError("the devices of a confidential VM need a window for their BARs")


def _check_mac(mac: str) -> None:
    if not _MAC.fullmatch(mac):
        raise SpecError(f"{mac!r} is not a MAC address (xx:xx:xx:xx:xx:xx)")


def _check_ipv4(text: str, what: str) -> None:
    try:
        ipaddress.IPv4Address(text)
    except ValueError:
        raise SpecError(f"{text!r} cannot be {what}: it is not an IPv4 address") from None


def _check_socket(path: Path, what: str) -> None:
    _check_path(path, what)
    if len(bytes(path)) > UNIX_PATH_MAX:
        raise SpecError(f"the path of {what} is longer than {UNIX_PATH_MAX} bytes")


def _check_path(path: Path, what: str) -> None:
    if not path.is_absolute():
        raise SpecError(f"the path of {what} must be absolute: {str(path)!r}")
    if not str(path).isprintable():
        raise SpecError(f"the path of {what} has unprintable characters: {str(path)!r}")
