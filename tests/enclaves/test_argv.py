from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.enclaves.argv import build_argv
from agent.enclaves.pci_layout import LAYOUTS, VIRTIO_PCI
from agent.enclaves.spec import (
    Disk,
    Forward,
    InheritedFile,
    PathFile,
    SimulatedTee,
    SpecError,
    TapNic,
    UserNic,
    VmSpec,
)
from agent.model.ids import Bdf, EnclaveId
from tests.fakes import vm_specs

GOLDEN = Path(__file__).parents[1] / "golden" / "argv"
SPECS = vm_specs.golden_specs()
SPEC = SPECS["plain-tcg-tap"]


def values(argv: list[str], option: str) -> list[str]:
    return [argv[i + 1] for i, word in enumerate(argv) if word == option]


def objects(argv: list[str], option: str) -> list[dict[str, object]]:
    return [json.loads(text) for text in values(argv, option)]


def devices(spec: VmSpec) -> dict[str, dict[str, object]]:
    return {str(d["id"]): d for d in objects(build_argv("qemu", spec), "-device")}


@pytest.mark.parametrize("name", SPECS)
def test_the_command_line_is_the_golden_one(name: str) -> None:
    text = "".join(f"{word}\n" for word in build_argv("qemu-system-x86_64", SPECS[name]))
    file = GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN") == "1":
        file.write_text(text)
    assert file.read_text() == text


def test_every_golden_file_belongs_to_a_spec() -> None:
    assert {file.stem for file in GOLDEN.iterdir()} == set(SPECS)


@pytest.mark.parametrize("name", SPECS)
def test_a_panic_is_told_but_where_it_would_change_a_measured_table(name: str) -> None:
    """ACPI's tables name the device, and a trust domain's RTMR0 is made of them too."""
    argv = build_argv("qemu", SPECS[name])
    told = [device for device in objects(argv, "-device") if device["driver"] == "pvpanic"]
    assert len(told) == (0 if name.startswith("tdx") else 1)
    assert values(argv, "-action") == ["panic=pause"]  # its console is still to be saved


@pytest.mark.parametrize("name", SPECS)
def test_only_a_debug_release_has_a_console_that_its_guest_can_use(name: str) -> None:
    spec = SPECS[name]
    there = [d["driver"] for d in objects(build_argv("q", spec), "-device")]
    assert there.count("virtconsole") == spec.debug_console
    assert ("tinfoil-debug=on" in spec.cmdline) is spec.debug_console


def test_the_same_spec_gives_the_same_command_line() -> None:
    again = vm_specs.golden_specs()
    assert all(build_argv("q", SPECS[n]) == build_argv("q", again[n]) for n in SPECS)


def test_the_command_line_of_the_manifest_is_passed_exactly() -> None:
    odd = "a=1,b=2  c='x y' --d -kernel /etc/passwd"
    argv = build_argv("qemu", dataclasses.replace(SPEC, cmdline=odd))
    assert values(argv, "-append") == [odd]


def test_no_two_devices_share_an_address() -> None:
    full = dataclasses.replace(
        SPEC,
        gpus=tuple(Bdf(f"0000:{n:02x}:00.0") for n in range(8)),
        switches=tuple(Bdf(f"0000:{n:02x}:00.0") for n in range(16, 20)),
        models=(Disk(PathFile(Path("/m"))),) * 12,
        volumes=(Disk(PathFile(Path("/v")), read_only=False),) * 12,
        tee=SimulatedTee(Path("/run/sim-psp")),
        firmware=PathFile(Path("/f")),
        debug_console=True,
    )
    placed = [d["addr"] for d in devices(full).values() if d.get("bus") == "pcie.0"]
    assert len(placed) == 8 + 4 + 1 + 3 + 24 + 2
    assert len(set(placed)) == len(placed)
    assert {"00.0", "1f.0", "1f.2", "1f.3"}.isdisjoint(placed)  # q35's own


def test_models_come_before_volumes_and_count_from_one() -> None:
    files = vm_specs.imagined()
    spec = vm_specs.with_data_disks(SPEC, files)
    shown = [
        (d["addr"], d["serial"]) for name, d in devices(spec).items() if name.startswith("data")
    ]
    assert shown == [
        ("07.0", "tinfoil-modelwrap1"),
        ("08.0", "tinfoil-modelwrap2"),
        ("09.0", "tinfoil-volume1"),
    ]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"models": (Disk(PathFile(Path("/m"))),) * 25}, "there is room for 24"),
        ({"gpus": (Bdf("0000:01:00.0"),) * 9}, "9 GPUs: there is room for 8"),
        ({"switches": (Bdf("0000:01:00.0"),) * 5}, "5 NVSwitches: there is room for 4"),
        ({"layout": "by-path"}, "machine layout 'by-path' is unknown; known: virtio-pci"),
    ],
)
def test_what_the_layout_has_no_room_for_is_refused(change: dict[str, object], text: str) -> None:
    with pytest.raises(SpecError, match=text):
        build_argv("qemu", dataclasses.replace(SPEC, **change))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=lambda layout: layout.name)
def test_serials_fit_into_the_twenty_bytes_that_virtio_has(layout: object) -> None:
    assert layout is VIRTIO_PCI
    rooms = VIRTIO_PCI.data_disks(24, 0) + VIRTIO_PCI.data_disks(0, 24)
    assert all(len(place.serial) <= 20 for place in rooms)


@pytest.mark.parametrize(
    "change",
    [
        {"enclave_id": EnclaveId("abcd,x=1")},
        {"enclave_id": EnclaveId("../../ab")},
        {"enclave_id": EnclaveId("abcd2345\n")},
        {"enclave_id": EnclaveId("")},
        {"launch_uuid": "not-a-uuid"},
        {"launch_uuid": SPEC.launch_uuid + "\n"},
        {"memory_mib": 0},
        {"vcpus": 0},
        {"vcpus": -1},
        {"console_bytes": 1000},
        {"console_bytes": 0},
        {"cmdline": "one\ntwo"},
        {"cmdline": "a\0b"},
        {"qmp_socket": Path("relative/qmp")},
        {"qmp_socket": Path("/run/a\nb")},
        {"qmp_socket": Path("/run") / ("x" * 110)},
        {"tee": SimulatedTee(Path("/run/sim-psp"))},  # without a firmware
        {"gpus": (Bdf("18:00.0"),)},
        {"gpus": (Bdf("0000:18:00.0,x=1"),)},
        {"switches": (Bdf("0000:18:00.0\n"),)},
    ],
    ids=str,
)
def test_an_impossible_part_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(SpecError):
        dataclasses.replace(SPEC, **change)


@pytest.mark.parametrize("fd", [-1, 0, 1, 2])
def test_the_standard_descriptors_are_no_files_of_a_vm(fd: int) -> None:
    with pytest.raises(SpecError):
        InheritedFile(fd)


@pytest.mark.parametrize("path", ["relative", "/a\nb", "/a\0b", "/caf\udce9"])
def test_an_impossible_path_is_refused(path: str) -> None:
    with pytest.raises(SpecError):
        PathFile(Path(path))


@pytest.mark.parametrize("name", ["", "a,b", "a/b", "..", "a b", "x" * 16, "a\n", "enc%d"])
def test_an_impossible_link_name_is_refused(name: str) -> None:
    with pytest.raises(SpecError):
        TapNic(name, vm_specs.MAC)


@pytest.mark.parametrize("mac", ["", "02:00:00:00:00", "02:00:00:00:00:0g", vm_specs.MAC + ",x=1"])
def test_an_impossible_mac_is_refused(mac: str) -> None:
    with pytest.raises(SpecError):
        TapNic("tap0", mac)


@pytest.mark.parametrize(
    ("address", "host_port", "guest_port"),
    [
        ("127.0.0.1,x", 1, 1),
        ("::1", 1, 1),
        ("", 1, 1),
        ("127.0.0.1", 0, 1),
        ("127.0.0.1", 1, 65536),
    ],
)
def test_an_impossible_forward_is_refused(address: str, host_port: int, guest_port: int) -> None:
    with pytest.raises(SpecError):
        Forward(address, host_port, guest_port)


@pytest.mark.parametrize(
    "change",
    [
        {"subnet": "10.0.2.0/24,x=1"},
        {"subnet": "10.0.2.1/24"},
        {"gateway": "10.0.2.2-"},
        {"guest_address": "fe80::1"},
    ],
    ids=str,
)
def test_an_impossible_user_network_is_refused(change: dict[str, str]) -> None:
    with pytest.raises(SpecError):
        dataclasses.replace(vm_specs.user_nic(), **change)


printable = st.text(min_size=1, max_size=40).filter(
    lambda text: text.isprintable() and text.strip("/. ") != ""
)


@given(printable)
def test_a_path_stays_one_value_whatever_is_in_it(text: str) -> None:
    path = Path("/") / text
    spec = dataclasses.replace(
        SPEC, root_disk=Disk(PathFile(path)), kernel=PathFile(path), firmware=PathFile(path)
    )
    argv = build_argv("qemu", spec)
    named = dataclasses.replace(spec, root_disk=Disk(PathFile(Path("/x"))))
    assert len(argv) == len(build_argv("qemu", named))
    assert values(argv, "-bios") == [str(path)]
    assert values(argv, "-kernel") == [str(path)]
    root = objects(argv, "-blockdev")[0]
    assert root["file"] == {"driver": "file", "filename": str(path), "read-only": True}


@given(printable)
def test_a_comma_in_the_qmp_path_is_doubled(text: str) -> None:
    path = Path("/r") / text[:20]
    if len(bytes(path)) > 107:
        return
    chardev = values(build_argv("qemu", dataclasses.replace(SPEC, qmp_socket=path)), "-chardev")[0]
    keys = chardev.replace(",,", "\0").split(",")
    assert [key.split("=")[0] for key in keys] == ["socket", "id", "path", "server", "wait"]
    assert keys[2].replace("\0", ",") == f"path={path}"


@given(printable)
def test_a_comma_in_the_path_of_the_simulated_processor_is_doubled(text: str) -> None:
    path = Path("/r") / text[:20]
    if len(bytes(path)) > 107:
        return
    spec = vm_specs.simulated(SPEC, vm_specs.imagined(), path)
    chardev = values(build_argv("qemu", spec), "-chardev")[-1]
    keys = chardev.replace(",,", "\0").split(",")
    assert [key.split("=")[0] for key in keys] == ["socket", "id", "path", "server", "wait"]
    assert keys[2].replace("\0", ",") == f"path={path}"


@pytest.mark.parametrize("path", ["relative", "/r/" + "x" * 110, "/r/a\nb"])
def test_an_impossible_socket_of_the_simulated_processor_is_refused(path: str) -> None:
    with pytest.raises(SpecError, match="simulated processor"):
        SimulatedTee(Path(path))


def test_a_user_network_reaches_only_the_ports_that_are_forwarded() -> None:
    nic = vm_specs.user_nic(vm_specs.HTTPS, vm_specs.PLAIN)
    assert isinstance(nic, UserNic)
    (netdev,) = objects(build_argv("qemu", dataclasses.replace(SPEC, nic=nic)), "-netdev")
    assert netdev["hostfwd"] == [
        {"str": "tcp:127.215.0.2:20001-10.0.2.15:443"},
        {"str": "tcp:127.215.0.2:20000-10.0.2.15:80"},
    ]
    assert netdev["ipv6"] is False
