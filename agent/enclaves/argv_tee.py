"""The parts of a command line that differ by TEE: machine, processor, memory, guest object. Pure.

Invariant: what is measured of a confidential guest (its processors, firmware, kernel, initrd,
command line, the machine's devices and their addresses) depends on the release and the demand
alone, never on the slot, the host's devices or its NUMA nodes: two enclaves of one revision have
one measurement. QEMU gives virtio devices of a confidential guest `iommu_platform` by itself.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any, assert_never

from agent.enclaves.pci_layout import RootPorts
from agent.enclaves.spec import (
    ConfidentialTee,
    PlainTee,
    QuoteService,
    SevSnpTee,
    SimulatedTee,
    TdxTee,
    UnixQuotes,
    VmAccel,
    VmSpec,
    VsockQuotes,
)
from agent.model.measurement import SNP_CPU_MODEL

# The fastest to boot of TCG's models, raised to x86-64-v2, which distributions' userlands need;
# rdrand seeds the guest's generator at once, aes carries its TLS. ("max" boots 15 % slower.)
TCG_CPU = "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+lahf-lm,+rdrand,+aes,+pclmulqdq"
SNP_POLICY = 0x30000  # SMT may be on (bit 16); bit 17 is reserved and must be one
SNP_DEVICE = "/dev/sev"
HOST_DATA = base64.b64encode(bytes(32)).decode()  # zero with firmware of the OVMF kind
TDX_REGISTER = base64.b64encode(bytes(48)).decode()  # MRCONFIGID, MROWNER, MROWNERCONFIG: zero

# What a launch in one measured file was measured with: the file holds the C-bit's position.
IGVM_SNP = {"cbitpos": 51, "reduced-phys-bits": 5, "policy": 0x30133, "measure-bsp-only": True}

_GUEST, _MEMORY, _IGVM = "tee", "ram", "igvm"
_HOLE_MIB = 4096
_EPYC_ADDRESS_MIB = 1 << 20  # QEMU's processor models have 40 address bits unless told otherwise
IOMMUFD = "iommufd0"


def machine(spec: VmSpec) -> str:
    """Guest memory stays out of core dumps and out of page merging."""
    plain = "q35,dump-guest-core=off,mem-merge=off"
    if not isinstance(spec.tee, ConfidentialTee):
        return plain
    guest = f"confidential-guest-support={_GUEST},memory-backend={_MEMORY}"
    file = f",igvm-cfg={_IGVM}" if spec.igvm is not None else ""
    # What a trust domain has anyway; said, as the public launcher says it with its root ports.
    off = ",smm=off,pic=off" if spec.root_ports is not None else ""
    return f"{plain},kernel-irqchip=split{off},{guest}{file}"


def igvm(file: str) -> Iterator[str]:
    """The one measured file that everything is launched of. No QEMU was tried with it."""
    yield from ("-object", _json({"qom-type": "igvm-cfg", "id": _IGVM, "file": file}))


def cpu(spec: VmSpec) -> str:
    match spec.tee:
        case SevSnpTee():
            return _epyc(spec)
        case TdxTee():
            return "host"
        case PlainTee() | SimulatedTee():
            return _plain_cpu(spec.accel)
    assert_never(spec.tee)


def _plain_cpu(accel: VmAccel) -> str:
    match accel:
        case VmAccel.KVM:
            return "host"
        case VmAccel.TCG:
            return TCG_CPU
    assert_never(accel)


def _epyc(spec: VmSpec) -> str:
    """Only its signature is measured: the width of its addresses may follow what must fit."""
    window = (
        spec.mmio_window_mib or 0
    )  # aligned to its size, above memory and the hole below 4 GiB
    fits = _HOLE_MIB + spec.memory_mib + 2 * window <= _EPYC_ADDRESS_MIB
    return SNP_CPU_MODEL if fits else f"{SNP_CPU_MODEL},host-phys-bits=on"


def memory(spec: VmSpec) -> Iterator[str]:
    """The backend of a confidential guest's memory, preferred of its node (a full one is none)."""
    match spec.tee:
        case SevSnpTee():
            kind: dict[str, Any] = {"qom-type": "memory-backend-memfd", "share": True}
        case TdxTee():
            kind = {"qom-type": "memory-backend-ram"}
        case PlainTee() | SimulatedTee():
            return
        case _:
            assert_never(spec.tee)
    backend = kind | {"id": _MEMORY, "size": spec.memory_mib << 20, "prealloc": False}
    backend |= {"dump": False, "merge": False}
    if spec.numa_node is not None:
        backend |= {"host-nodes": [spec.numa_node], "policy": "preferred"}
    yield from ("-object", _json(backend))


def guest(spec: VmSpec) -> Iterator[str]:
    """The object that makes the guest a confidential one."""
    match spec.tee:
        case SevSnpTee(cbitpos, reduced_phys_bits):
            snp: dict[str, Any] = {
                "qom-type": "sev-snp-guest",
                "id": _GUEST,
                "sev-device": SNP_DEVICE,
                "cbitpos": cbitpos,
                "reduced-phys-bits": reduced_phys_bits,
                "policy": SNP_POLICY,
                "kernel-hashes": True,
                "host-data": HOST_DATA,
            }
            if spec.igvm is not None:
                del snp["kernel-hashes"]
                snp |= IGVM_SNP | {"host-data": _base64(spec.igvm.config_sha256)}
            yield from ("-object", _json(snp))
        case TdxTee(quotes):
            tdx: dict[str, Any] = {
                "qom-type": "tdx-guest",
                "id": _GUEST,
                "sept-ve-disable": True,
                "mrconfigid": TDX_REGISTER,
                "mrowner": TDX_REGISTER,
                "mrownerconfig": TDX_REGISTER,
                "quote-generation-socket": _quotes(quotes),
            }
            if spec.igvm is not None:
                tdx["mrconfigid"] = _base64(spec.igvm.config_sha256 + bytes(16))
            yield from ("-object", _json(tdx))
        case PlainTee() | SimulatedTee():
            return
        case _:
            assert_never(spec.tee)


def panic_device(spec: VmSpec) -> Iterator[str]:
    """How a guest's kernel tells that it panicked: a port of the ISA bus, named in ACPI's tables.

    A trust domain has none: its firmware measures those tables into RTMR0. The launch digest of
    an SEV-SNP guest does not contain them.
    """
    match spec.tee:
        case TdxTee():
            return
        case SevSnpTee() | PlainTee() | SimulatedTee():
            yield from ("-device", _json({"driver": "pvpanic", "id": "panic"}))
        case _:
            assert_never(spec.tee)


def _quotes(service: QuoteService) -> dict[str, str]:
    match service:
        case VsockQuotes(cid, port):
            return {"type": "vsock", "cid": str(cid), "port": str(port)}
        case UnixQuotes(path):
            return {"type": "unix", "path": str(path)}
    assert_never(service)


def passthrough(spec: VmSpec, ports: RootPorts | None) -> Iterator[str]:
    """What devices of the host need besides themselves: iommufd, and a window for their BARs.

    The public launcher's boards have a window by the firmware's own measure: what they tell it
    of each port has names that it does not look for, and where BARs lie is seen in ACPI's tables.
    """
    if spec.iommufd and (spec.gpus or spec.switches):
        given = {} if spec.iommu_fd is None else {"fd": str(spec.iommu_fd)}
        yield from ("-object", _json({"qom-type": "iommufd", "id": IOMMUFD} | given))
    if ports is not None and ports.port_window_mib is not None:
        for number in range(1, ports.count + 1):
            name = f"opt/ovmf/X-PciMmio64Mb{number}"
            yield from ("-fw_cfg", f"name={name},string={ports.port_window_mib}")
    elif spec.mmio_window_mib is not None:
        window = f"name=opt/ovmf/X-PciMmio64Mb,string={spec.mmio_window_mib}"
        yield from ("-fw_cfg", window)


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":"))
