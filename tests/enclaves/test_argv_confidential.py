"""Command lines of confidential guests: what the recipes ask for, and what may never vary."""

from __future__ import annotations

import base64
import dataclasses
import itertools
import json
from pathlib import Path

import pytest

from agent.enclaves.argv import build_argv, passed_id
from agent.enclaves.mmio import window_mib
from agent.enclaves.spec import (
    InheritedFile,
    SevSnpTee,
    SpecError,
    TapNic,
    TdxTee,
    UnixQuotes,
    VmAccel,
    VmSpec,
    VsockQuotes,
)
from agent.model.ids import Bdf, EnclaveId
from agent.model.pci import Bar
from tests.fakes import vm_specs

GIB = 1 << 30
SPECS = vm_specs.boards()


def values(spec: VmSpec, option: str) -> list[str]:
    argv = build_argv("qemu", spec)
    return [argv[i + 1] for i, word in enumerate(argv) if word == option]


def qom(spec: VmSpec, kind: str) -> dict[str, object]:
    (found,) = [o for o in map(json.loads, values(spec, "-object")) if o["qom-type"] == kind]
    return dict(found)


@pytest.mark.parametrize("kind", ["snp", "tdx"])
@pytest.mark.parametrize("size", ["0-gpus", "1-gpu", "8-gpus-everything"])
def test_the_machine_is_joined_to_its_guest_object_and_its_memory(kind: str, size: str) -> None:
    spec = SPECS[f"{kind}-kvm-tap-{size}"]
    (machine,) = values(spec, "-machine")
    keys = dict(part.split("=") for part in machine.split(",")[1:])
    objects = {o["id"]: o for o in map(json.loads, values(spec, "-object"))}
    assert objects[keys["confidential-guest-support"]]["qom-type"] in {
        "sev-snp-guest",
        "tdx-guest",
    }
    assert objects[keys["memory-backend"]]["size"] == spec.memory_mib << 20
    assert keys["kernel-irqchip"] == "split"
    assert keys["dump-guest-core"] == "off"
    assert values(spec, "-m") == [f"{spec.memory_mib}M"]


def test_an_snp_guest_is_measured_with_its_kernel_and_without_host_data() -> None:
    guest = qom(SPECS["snp-kvm-tap-0-gpus"], "sev-snp-guest")
    assert guest["kernel-hashes"] is True
    assert base64.b64decode(str(guest["host-data"])) == bytes(32)
    assert guest["policy"] == 0x30000
    assert (guest["cbitpos"], guest["reduced-phys-bits"]) == (51, 1)


def test_a_trust_domain_has_zero_owner_registers_and_a_quote_service() -> None:
    guest = qom(SPECS["tdx-kvm-tap-0-gpus"], "tdx-guest")
    for register in ("mrconfigid", "mrowner", "mrownerconfig"):
        assert base64.b64decode(str(guest[register])) == bytes(48)
    assert guest["quote-generation-socket"] == {"type": "vsock", "cid": "2", "port": "4050"}
    local = qom(SPECS["tdx-unix-kvm-user"], "tdx-guest")
    assert local["quote-generation-socket"] == {"type": "unix", "path": "/run/qgs.socket"}


def test_memory_is_of_the_kind_that_the_tee_wants() -> None:
    snp = qom(SPECS["snp-kvm-tap-1-gpu"], "memory-backend-memfd")
    assert (snp["share"], snp["prealloc"]) == (True, False)
    assert (snp["host-nodes"], snp["policy"]) == ([1], "preferred")
    tdx = qom(SPECS["tdx-kvm-tap-1-gpu"], "memory-backend-ram")
    assert "host-nodes" not in tdx
    assert tdx["dump"] is tdx["merge"] is False


@pytest.mark.parametrize("kind", ["snp", "tdx", "simulated", "plain"])
def test_every_device_of_the_host_has_a_port_of_its_own_and_goes_through_iommufd(
    kind: str,
) -> None:
    spec = SPECS[f"{kind}-kvm-tap-8-gpus-everything"]
    devices = [json.loads(text) for text in values(spec, "-device")]
    ports = {d["id"]: d for d in devices if d["driver"] == "pcie-root-port"}
    passed = [d for d in devices if d["driver"] == "vfio-pci"]
    assert len(passed) == 12
    assert {d["bus"] for d in passed} == set(ports)
    assert len({d["chassis"] for d in ports.values()}) == 12
    assert {d["iommufd"] for d in passed} == {qom(spec, "iommufd")["id"]}
    assert values(spec, "-fw_cfg") == ["name=opt/ovmf/X-PciMmio64Mb,string=2097152"]


@pytest.mark.parametrize("kind", ["snp", "tdx"])
def test_in_a_cage_devices_are_given_as_descriptors_and_still_named(kind: str) -> None:
    spec = SPECS[f"{kind}-kvm-tap-8-gpus-everything"]
    fds = tuple(range(50, 62))
    caged = dataclasses.replace(spec, filtered=True, iommu_fd=49, device_fds=fds)
    assert qom(caged, "iommufd")["fd"] == "49"
    passed = [d for d in map(json.loads, values(caged, "-device")) if d["driver"] == "vfio-pci"]
    assert [d["fd"] for d in passed] == [str(fd) for fd in fds]
    assert [d["host"] for d in passed] == [*spec.gpus, *spec.switches]
    assert [d["id"] for d in passed] == [passed_id(n) for n in range(1, 13)]
    assert values(caged, "-sandbox") == []
    assert values(spec, "-sandbox")[0].startswith("on,")
    with pytest.raises(SpecError, match="either each device"):
        dataclasses.replace(spec, device_fds=fds[1:])


def test_the_firmware_of_a_confidential_guest_is_given_as_bios() -> None:
    for kind in ("snp", "tdx"):
        spec = SPECS[f"{kind}-kvm-tap-0-gpus"]
        assert isinstance(spec.firmware, InheritedFile)
        assert values(spec, "-bios") == [f"/proc/self/fd/{spec.firmware.fd}"]


def test_addresses_are_widened_only_where_the_window_does_not_fit() -> None:
    assert values(SPECS["snp-kvm-tap-1-gpu"], "-cpu") == ["EPYC-v4"]
    everything = SPECS["snp-kvm-tap-8-gpus-everything"]
    assert values(everything, "-cpu") == ["EPYC-v4,host-phys-bits=on"]
    assert values(SPECS["tdx-kvm-tap-8-gpus-everything"], "-cpu") == ["host"]


def ports_of(spec: VmSpec) -> list[dict[str, object]]:
    devices = [json.loads(text) for text in values(spec, "-device")]
    return [device for device in devices if device["driver"] == "pcie-root-port"]


@pytest.mark.parametrize(("layout", "count"), [("hopper", 12), ("blackwell", 8)])
def test_a_board_of_a_trust_domain_has_the_public_launcher_s_ports(
    layout: str, count: int
) -> None:
    spec = SPECS[f"tdx-kvm-tap-{layout}"]
    ports = ports_of(spec)
    assert [port["addr"] for port in ports] == [f"{0x16 + n // 8:x}.{n % 8}" for n in range(count)]
    assert [port["port"] for port in ports] == list(range(16, 16 + count))
    assert [port["chassis"] for port in ports] == list(range(1, count + 1))
    assert [n for n, port in enumerate(ports) if port.get("multifunction")] == (
        [0, 8] if count == 12 else [0]
    )
    assert values(spec, "-fw_cfg") == [
        f"name=opt/ovmf/X-PciMmio64Mb{n},string=262144" for n in range(1, count + 1)
    ]
    assert values(spec, "-global") == ["q35-pcihost.pci-hole64-size=4096G"]
    (machine,) = values(spec, "-machine")
    assert {"smm=off", "pic=off", "kernel-irqchip=split"} <= set(machine.split(","))


def test_one_gpu_of_a_trust_domain_has_the_public_launcher_s_port() -> None:
    spec = SPECS["tdx-kvm-tap-single"]
    (port,) = ports_of(spec)
    assert port == {
        "driver": "pcie-root-port",
        "id": "port1",
        "bus": "pcie.0",
        "slot": 1,
        "pref64-reserve": 512 * GIB,
    }
    assert values(spec, "-fw_cfg") == ["name=opt/ovmf/X-PciMmio64Mb,string=262144"]
    assert values(spec, "-global") == ["q35-pcihost.pci-hole64-size=4096G"]


def many_models(layout: str, count: int) -> VmSpec:
    disk = SPECS[f"tdx-kvm-tap-{layout}"].models[0]
    return dataclasses.replace(SPECS[f"tdx-kvm-tap-{layout}"], models=(disk,) * count, volumes=())


@pytest.mark.parametrize(("layout", "room"), [("hopper", 15), ("blackwell", 15), ("single", 24)])
def test_no_disk_lies_where_root_ports_are(layout: str, room: int) -> None:
    argv = "\n".join(build_argv("qemu", many_models(layout, room)))
    assert f'"id":"data{room}-disk","bus":"pcie.0","addr":"{6 + room:02x}.0"' in argv
    with pytest.raises(SpecError, match=f"there is room for {room}"):
        build_argv("qemu", many_models(layout, room + 1))


@pytest.mark.parametrize(
    ("name", "change", "text"),
    [
        ("snp-kvm-tap-1-gpu", {"root_ports": "single"}, "only a trust domain"),
        ("tdx-kvm-tap-1-gpu", {"root_ports": "hopper"}, "1 devices"),
        ("tdx-kvm-tap-1-gpu", {"root_ports": "rubin"}, "unknown; known: blackwell, hopper"),
    ],
)
def test_root_ports_that_are_none_of_it_are_refused(
    name: str, change: dict[str, str], text: str
) -> None:
    with pytest.raises(SpecError, match=text):
        build_argv("qemu", dataclasses.replace(SPECS[name], **change))


def other_slot(spec: VmSpec) -> VmSpec:
    """The same revision in the other slot: another enclave, on other devices of the host."""
    run = Path("/run/enclave-agent/zzzz7777/qmp.sock")
    return dataclasses.replace(
        spec,
        enclave_id=EnclaveId("zzzz7777"),
        launch_uuid="0d9c7f52-2f52-4c44-8c9d-5a7c0c5c9a10",
        kernel=InheritedFile(40),
        initrd=InheritedFile(41),
        firmware=InheritedFile(42),
        nic=TapNic("enc-zzzz7777", "02:00:0a:d7:00:03"),
        qmp_socket=run,
        gpus=tuple(Bdf(f"0001:{n:02x}:00.0") for n in range(len(spec.gpus))),
        switches=tuple(Bdf(f"0002:{n:02x}:00.0") for n in range(len(spec.switches))),
        numa_node=None if spec.numa_node is None else 0,
    )


def guest_sees(spec: VmSpec) -> list[str]:
    """The command line without what only the host sees: names, descriptors, paths, places."""
    text = "\n".join(build_argv("qemu", spec))
    private = [spec.enclave_id, spec.launch_uuid, spec.nic.mac, *spec.gpus, *spec.switches]
    for word in private:
        text = text.replace(str(word), "*")
    for source in (spec.kernel, spec.initrd, spec.firmware):
        assert isinstance(source, InheritedFile)
        text = text.replace(f"/proc/self/fd/{source.fd}\n", "/proc/self/fd/*\n")
    return text.replace(f'"host-nodes":[{spec.numa_node}]', '"host-nodes":[*]').splitlines()


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        *itertools.product(("snp", "tdx"), ("0-gpus", "1-gpu", "8-gpus-everything")),
        *(("tdx", layout) for layout in vm_specs.PUBLIC),
    ],
)
def test_both_slots_of_a_revision_are_the_same_machine_to_the_guest(kind: str, size: str) -> None:
    spec = SPECS[f"{kind}-kvm-tap-{size}"]
    other = other_slot(spec)
    assert build_argv("qemu", other) != build_argv("qemu", spec)
    assert guest_sees(other) == guest_sees(spec)


def bar(size: int, *, prefetchable: bool = True) -> Bar:
    return Bar(index=0, size_bytes=size, is_64bit=True, prefetchable=prefetchable)


@pytest.mark.parametrize(
    ("devices", "mib"),
    [
        ([vm_specs.H100_BARS], 262144),
        ([vm_specs.H100_BARS] * 8, 2097152),
        ([vm_specs.H100_BARS] * 8 + [vm_specs.SWITCH_BARS] * 4, 2097152),
        ([(bar(256 * GIB), bar(32 << 20))], 524288),
        ([vm_specs.SWITCH_BARS], 2048),
        ([(bar(128 * GIB),), (bar(256 * GIB),)], 524288),
        ([(bar(128 * GIB, prefetchable=False),)], 2048),
    ],
)
def test_the_window_holds_every_bar_at_its_alignment(
    devices: list[tuple[Bar, ...]], mib: int
) -> None:
    assert window_mib(devices) == mib


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"accel": VmAccel.TCG}, "under KVM only"),
        ({"firmware": None}, "needs a firmware"),
        ({"iommufd": False}, "need iommufd"),
        ({"mmio_window_mib": None}, "window for their BARs"),
        ({"mmio_window_mib": 0}, "at least 1 MiB"),
        ({"numa_node": -1}, "no NUMA node -1"),
    ],
)
def test_an_impossible_confidential_guest_is_refused(change: dict[str, object], text: str) -> None:
    with pytest.raises(SpecError, match=text):
        dataclasses.replace(SPECS["snp-kvm-tap-1-gpu"], **change)


def test_impossible_numbers_of_a_tee_are_refused() -> None:
    for cbitpos, reduced in ((31, 1), (64, 1), (51, -1), (51, 33)):
        with pytest.raises(SpecError):
            SevSnpTee(cbitpos, reduced)
    for cid, port in ((-1, 4050), (2, 0), (1 << 32, 4050)):
        with pytest.raises(SpecError, match="quote service"):
            VsockQuotes(cid, port)
    with pytest.raises(SpecError, match="quote service"):
        TdxTee(UnixQuotes(Path("relative")))
