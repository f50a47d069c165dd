"""From a spec to QEMU's command line: pure and deterministic, the same spec gives the same bytes.

Invariant: no value of a spec can become another option. What QEMU 7.2 parses as JSON (devices,
block nodes, network backends) is given as JSON, where a comma is a comma; elsewhere a value is
a whole argument of its own, was checked by `spec`, or has its commas doubled.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, assert_never

from agent.enclaves import argv_tee
from agent.enclaves.pci_layout import Layout, PciSlot, RootPorts, layout_of, root_ports_of
from agent.enclaves.spec import (
    Disk,
    FileSource,
    InheritedFile,
    Nic,
    PathFile,
    PlainTee,
    SevSnpTee,
    SimulatedTee,
    SpecError,
    TapNic,
    TdxTee,
    TeeVariant,
    UserNic,
    VmSpec,
)

QMP_CHARDEV = "qmp"
STOP_CHARDEV = "qmp-stop"
CONSOLE_CHARDEV = "console"
PSP_PORT = "sim-psp"  # the guest finds the simulated processor by this name
SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


def build_argv(binary: str, spec: VmSpec) -> list[str]:
    """The command line that starts this VM. Raises SpecError if the layout has no room for it."""
    layout, ports = layout_of(spec.layout), root_ports_of(spec.root_ports)
    return [
        binary,
        *_process(spec),
        *_machine(spec, ports),
        *_boot(spec),
        *_monitors(spec),
        *argv_tee.panic_device(spec),
        *_devices_of_host(spec, layout, ports),
        *_nic(spec.nic, layout),
        *_disks(spec, layout, ports),
        *_simulated(spec.tee, layout),
        *_debug_console(spec, layout),
    ]


def console_ring(*, debug_console: bool) -> str:
    """The ring that QMP reads. QEMU renames what several devices write to, by this rule."""
    return f"{CONSOLE_CHARDEV}-base" if debug_console else CONSOLE_CHARDEV


def passed_id(number: int) -> str:
    """What QEMU knows a device of the host by; they are counted from 1 on, GPUs first."""
    return f"passed{number}"


def _process(spec: VmSpec) -> Iterator[str]:
    """Who it is, and what it may do to the host. The guest's end leaves a paused QEMU."""
    name = f"enclave-{spec.enclave_id}"
    yield from ("-name", f"{name},process=enc-{spec.enclave_id},debug-threads=on")
    yield from ("-uuid", spec.launch_uuid)
    if (
        not spec.filtered
    ):  # a filter that answers with errors is not to be joined by one that kills
        yield from ("-sandbox", SANDBOX)
    yield from ("-nodefaults", "-no-user-config", "-display", "none", "-vga", "none")
    yield from ("-no-reboot", "-no-shutdown", "-action", "panic=pause")


def _machine(spec: VmSpec, ports: RootPorts | None) -> Iterator[str]:
    yield from ("-machine", argv_tee.machine(spec))
    if ports is not None:
        yield from ("-global", f"q35-pcihost.pci-hole64-size={ports.hole64}")
    yield from ("-accel", spec.accel.value)
    yield from ("-cpu", argv_tee.cpu(spec))
    yield from ("-smp", str(spec.vcpus))
    yield from ("-m", f"{spec.memory_mib}M")
    yield from argv_tee.memory(spec)
    yield from argv_tee.guest(spec)


def _boot(spec: VmSpec) -> Iterator[str]:
    if spec.igvm is not None:
        yield from argv_tee.igvm(_file_name(spec.igvm.source))
        return
    if spec.firmware is not None:
        yield from ("-bios", _file_name(spec.firmware))
    if spec.kernel is not None and spec.initrd is not None:
        yield from ("-kernel", _file_name(spec.kernel))
        yield from ("-initrd", _file_name(spec.initrd))
    yield from ("-append", spec.cmdline)


def _monitors(spec: VmSpec) -> Iterator[str]:
    """QMP on a socket; the console in a ring that never stalls the guest, read through QMP.

    The ring of a debug release takes what comes over the serial line and over hvc0, as it comes.
    """
    monitors = {QMP_CHARDEV: spec.qmp_socket, STOP_CHARDEV: spec.stop_socket}
    for chardev, path in monitors.items():
        if path is not None:
            yield from ("-chardev", _listening(chardev, path))
            yield from ("-mon", f"chardev={chardev},mode=control")
    shared = ",mux=on" if spec.debug_console else ""
    yield from ("-chardev", f"ringbuf,id={CONSOLE_CHARDEV},size={spec.console_bytes}{shared}")
    yield from ("-serial", f"chardev:{CONSOLE_CHARDEV}")


def _devices_of_host(spec: VmSpec, layout: Layout, ports: RootPorts | None) -> Iterator[str]:
    """A root port for each GPU and NVSwitch, with the host's device behind it."""
    yield from argv_tee.passthrough(spec, ports)
    reached = {"iommufd": argv_tee.IOMMUFD} if spec.iommufd else {}
    devices = (*spec.gpus, *spec.switches)
    for chassis, (port, bdf) in enumerate(
        zip(_root_ports(spec, layout, ports), devices, strict=True), 1
    ):
        yield from ("-device", _json(port))
        name = passed_id(chassis)
        passed = {"driver": "vfio-pci", "id": name, "bus": port["id"], "host": bdf}
        # Beside a descriptor `host` is not looked at, but says which one it is.
        given = {"fd": str(spec.device_fds[chassis - 1])} if spec.device_fds else {}
        yield from ("-device", _json(passed | reached | given))


def _root_ports(spec: VmSpec, layout: Layout, ports: RootPorts | None) -> Iterator[dict[str, Any]]:
    if ports is not None:
        yield from _public_ports(spec, ports)
        return
    own = (*layout.gpu_ports(len(spec.gpus)), *layout.switch_ports(len(spec.switches)))
    for chassis, address in enumerate(own, 1):
        device = _pci("pcie-root-port", f"port{chassis}", address) | {"chassis": chassis}
        yield device | _many_functions(address)


def _public_ports(spec: VmSpec, ports: RootPorts) -> Iterator[dict[str, Any]]:
    """As the public launcher has them; a port's number is from 16 on, a chassis' from 1."""
    count = len(spec.gpus) + len(spec.switches)
    if count != ports.count:
        raise SpecError(f"{count} devices: the root ports {ports.name!r} are {ports.count}")
    for number in range(count):
        device = {"driver": "pcie-root-port", "id": f"port{number + 1}", "bus": "pcie.0"}
        address = ports.address(number)
        if address is None:
            yield device | {"slot": 1, "pref64-reserve": ports.reserve64_bytes}
        else:
            place = {"addr": address, "port": 16 + number, "chassis": number + 1}
            yield device | place | _many_functions(address)


def _many_functions(address: str) -> dict[str, bool]:
    return {"multifunction": True} if address.endswith(".0") else {}


def _nic(nic: Nic, layout: Layout) -> Iterator[str]:
    match nic:
        case TapNic():
            backend: dict[str, Any] = {"type": "tap", "id": "net"}
            if nic.fd is None:
                backend |= {"ifname": nic.name, "script": "no", "downscript": "no"}
            else:
                backend["fd"] = str(nic.fd)
        case UserNic():
            backend = {
                "type": "user",
                "id": "net",
                "ipv4": True,
                "ipv6": False,
                "restrict": nic.restricted,
                "net": nic.subnet,
                "host": nic.gateway,
                "hostfwd": [
                    {
                        "str": f"tcp:{forward.host_address}:{forward.host_port}"
                        f"-{nic.guest_address}:{forward.guest_port}"
                    }
                    for forward in nic.forwards
                ],
            }
        case _:
            assert_never(nic)
    yield from ("-netdev", _json(backend))
    device = _virtio("virtio-net-pci", "nic", layout.nic)
    yield from ("-device", _json(device | {"netdev": "net", "mac": nic.mac, "romfile": ""}))


def _disks(spec: VmSpec, layout: Layout, ports: RootPorts | None) -> Iterator[str]:
    places = layout.data_disks(len(spec.models), len(spec.volumes), ports)
    disks = [
        ("root", spec.root_disk, layout.root_disk),
        ("config", spec.config_disk, layout.config_disk),
        ("ext-config", spec.external_config_disk, layout.external_config_disk),
        *(
            (f"data{number}", disk, place)
            for number, (disk, place) in enumerate(
                zip((*spec.models, *spec.volumes), places, strict=True), 1
            )
        ),
    ]
    for fd_set, (node, disk, place) in enumerate(disks, 1):
        yield from _disk(node, disk, place, fd_set)


def _disk(node: str, disk: Disk, place: PciSlot, fd_set: int) -> Iterator[str]:
    """An inherited file goes through a descriptor set: QEMU never opens its name again."""
    match disk.source:
        case InheritedFile(fd):
            yield from ("-add-fd", f"fd={fd},set={fd_set}")
            filename = f"/dev/fdset/{fd_set}"
        case PathFile(path):
            filename = str(path)
        case _:
            assert_never(disk.source)
    blockdev = {
        "driver": "raw",
        "node-name": node,
        "read-only": disk.read_only,
        "file": {"driver": "file", "filename": filename, "read-only": disk.read_only},
    }
    yield from ("-blockdev", _json(blockdev))
    device = _virtio("virtio-blk-pci", f"{node}-disk", place.address)
    yield from ("-device", _json(device | {"drive": node, "serial": place.serial}))


def _simulated(tee: TeeVariant, layout: Layout) -> Iterator[str]:
    match tee:
        case PlainTee() | SevSnpTee() | TdxTee():
            pass
        case SimulatedTee(psp_socket):
            yield from ("-chardev", _listening(PSP_PORT, psp_socket))
            bus = _virtio("virtio-serial-pci", "sim-psp-bus", layout.simulated_psp)
            yield from ("-device", _json(bus | {"max_ports": 2}))
            port = {"driver": "virtserialport", "id": "sim-psp-port", "bus": "sim-psp-bus.0"}
            yield from ("-device", _json(port | {"chardev": PSP_PORT, "name": PSP_PORT}))
        case _:
            assert_never(tee)


def _debug_console(spec: VmSpec, layout: Layout) -> Iterator[str]:
    """The guest's hvc0: a port 0 of virtio-serial is a console, and it is the first one."""
    if not spec.debug_console:
        return
    bus = _virtio("virtio-serial-pci", "debug-console-bus", layout.debug_console)
    yield from ("-device", _json(bus | {"max_ports": 1}))
    console = {"driver": "virtconsole", "id": "debug-console", "bus": "debug-console-bus.0"}
    yield from ("-device", _json(console | {"chardev": CONSOLE_CHARDEV}))


def _listening(name: str, path: Path) -> str:
    """A character device on a unix socket where QEMU listens, now and after every connection."""
    escaped = str(path).replace(",", ",,")
    return f"socket,id={name},path={escaped},server=on,wait=off"


def _file_name(source: FileSource) -> str:
    match source:
        case InheritedFile(fd):
            return f"/proc/self/fd/{fd}"
        case PathFile(path):
            return str(path)
    assert_never(source)


def _virtio(driver: str, name: str, address: str) -> dict[str, Any]:
    return _pci(driver, name, address) | {"disable-legacy": "on"}


def _pci(driver: str, name: str, address: str) -> dict[str, Any]:
    return {"driver": driver, "id": name, "bus": "pcie.0", "addr": address}


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":"))
