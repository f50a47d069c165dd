"""The doctor about GPUs: every line has a host that makes it fail, and a mend."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from agent.cli.doctor_gpus import gpu_lines
from agent.cli.doctor_line import Line
from agent.config import Config, GpusConfig, HostConfig
from simulator import sysfs_tree as trees
from simulator.nvml import Nvml
from tests.fakes.gpus import BDF

Tree = trees.SysfsTree


class Patient:
    """A host in a directory, well until something is broken."""

    def __init__(self, root: Path, tree: Callable[[Path], Tree] = trees.hgx_h100) -> None:
        self.root = root
        self.tree = tree(root / "sys")
        (root / "cgroup").mkdir()
        (root / "dev").mkdir()
        (root / "dev/iommu").touch()
        (root / "dev/kmsg").touch()
        self.tools = root / "nvidia_gpu_tools.py"
        self.tools.write_text("#!/bin/sh\n")
        self.tools.chmod(0o755)
        self.library = "libnvidia-ml-that-is-not-there.so.1"
        self.gpus = GpusConfig()
        (root / "proc").mkdir()

    def lines(self) -> dict[str, Line]:
        config = Config(
            state_dir=self.root,
            host=HostConfig(
                sysfs_root=self.tree.root,
                cgroup_root=self.root / "cgroup",
                gpu_tools=str(self.tools),
                nvml_library=self.library,
            ),
            gpus=self.gpus,
        )
        lines = gpu_lines(config, self.root / "dev", self.root / "proc")
        assert len({line.what for line in lines}) == len(lines)
        for line in lines:
            assert (line.state == "ok") is not bool(line.mend), line
        return {line.what: line for line in lines}

    def put(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")


@pytest.fixture
def patient(tmp_path: Path) -> Patient:
    return Patient(tmp_path)


def test_a_well_host_has_nothing_to_mend(patient: Patient) -> None:
    lines = patient.lines()
    assert {line.state for line in lines.values()} == {"ok"}
    assert "8: NVIDIA H100 SXM; 4 NVSwitches" in lines["gpus"].detail
    assert set(lines) == {
        "gpus",
        "iommu",
        "iommu groups",
        "vfio",
        "iommufd",
        "kernel log",
        "gpu tools",
        "nvml",
        "pcie errors",
        "gpu health",
    }


def test_a_host_without_gpus_is_well(tmp_path: Path) -> None:
    lines = Patient(tmp_path, trees.cpu_only).lines()
    assert [(line.what, line.state) for line in lines.values()] == [("gpus", "ok")]


def test_a_sysfs_that_is_none_is_an_error(patient: Patient) -> None:
    (patient.tree.root / "bus").rename(patient.tree.root / "sub")
    assert patient.lines()["gpus"].state == "error"


def test_a_board_that_lacks_a_gpu_is_warned_of(patient: Patient) -> None:
    patient.tree.remove(BDF)
    line = patient.lines()["gpus"]
    assert (line.state, "a whole board has 8" in line.detail) == ("warn", True)


@pytest.mark.parametrize("count", [2, 4])
def test_a_board_without_switches_may_have_two_or_four(tmp_path: Path, count: int) -> None:
    patient = Patient(tmp_path, Tree)
    for bus in trees.HGX_BUSES[:count]:
        patient.tree.gpu_behind_port(f"pci0000:{bus - 1:02x}", bus, device=0x2339)
    assert patient.lines()["gpus"].state == "ok"


def test_a_board_that_lacks_a_switch_is_warned_of(patient: Patient) -> None:
    patient.tree.remove("0000:07:00.0")
    assert "4 NVSwitches" in patient.lines()["gpus"].detail
    assert patient.lines()["gpus"].state == "warn"


def test_a_part_that_cannot_be_confidential_is_warned_of_where_guests_are(
    patient: Patient,
) -> None:
    patient.tree.put(BDF, "device", "0x26b9")
    what = f"gpu {BDF} confidential"
    assert what not in patient.lines()
    patient.put("sys/module/kvm_amd/parameters/sev_snp", "Y")
    line = patient.lines()[what]
    assert (line.state, "NVIDIA L40S cannot be confidential" in line.detail) == ("warn", True)


def test_a_link_that_tells_nothing_of_its_lanes_is_warned_of(patient: Patient) -> None:
    patient.tree.drop(BDF, "current_link_width")
    line = patient.lines()["pcie links"]
    assert (line.state, BDF in line.detail) == ("warn", True)


def test_a_host_without_an_iommu_can_give_no_gpu_away(tmp_path: Path) -> None:
    patient = Patient(tmp_path, Tree)
    patient.tree.gpu_behind_port("pci0000:17", 0x18, group=None, device=trees.H100_PCIE)
    line = patient.lines()["iommu"]
    assert (line.state, "intel_iommu=on" in line.mend) == ("error", True)


def test_a_gpu_that_shares_its_group_is_told_with_whom(patient: Patient) -> None:
    group = patient.tree.root / "kernel/iommu_groups/11"
    (patient.tree.devices / "0000:00:03.0/iommu_group").symlink_to(group)
    (group / "devices/0000:00:03.0").symlink_to(patient.tree.devices / "0000:00:03.0")
    line = patient.lines()["iommu group 11"]
    assert (line.state, "0000:00:03.0" in line.detail) == ("error", True)
    assert "iommu groups" not in patient.lines()


def test_a_gpus_own_audio_function_is_no_stranger(tmp_path: Path) -> None:
    assert Patient(tmp_path, trees.pcie_boards).lines()["iommu groups"].state == "ok"


def test_usb_functions_of_the_card_itself_are_no_strangers(tmp_path: Path) -> None:
    patient = Patient(tmp_path, trees.pcie_boards)
    above = (patient.tree.devices / BDF).resolve().parent
    for number, code in ((2, 0x0C0330), (3, 0x0C8000)):
        patient.tree.add(
            above, f"0000:18:00.{number}", class_code=code, driver="xhci_hcd", group=11
        )
    assert patient.lines()["iommu groups"].state == "ok"


def test_vfio_that_is_not_loaded_is_told(patient: Patient) -> None:
    (patient.tree.root / "bus/pci/drivers/vfio-pci").rmdir()
    assert patient.lines()["vfio"].mend == "modprobe vfio-pci"


def bind_all(patient: Patient) -> None:
    for bus in (*trees.HGX_BUSES, 0x07, 0x08, 0x09, 0x0A):
        patient.tree.bind(f"0000:{bus:02x}:00.0", "vfio-pci")


def test_a_kernel_that_makes_no_files_for_vfio_devices_is_told(patient: Patient) -> None:
    bind_all(patient)
    assert patient.lines()["vfio devices"].state == "ok"
    patient.tree.drop(f"{BDF}/vfio-dev/vfio0", "dev")
    line = patient.lines()["vfio devices"]
    assert (line.state, BDF in line.detail, "CDEV" in line.mend) == ("error", True, True)


@pytest.mark.parametrize(
    ("kinds", "state"), [("10 misc\n246 vfio", "error"), ("246 vfio\n511 vfio-dev", "ok")]
)
def test_that_is_seen_before_a_vfio_driver_has_any(
    patient: Patient, kinds: str, state: str
) -> None:
    patient.put("proc/devices", f"Character devices:\n  1 mem\n{kinds}")
    assert patient.lines()["vfio devices"].state == state


def test_iommufd_that_is_not_there_is_told(patient: Patient) -> None:
    (patient.root / "dev/iommu").unlink()
    assert patient.lines()["iommufd"].state == "error"


def test_a_kernel_log_that_cannot_be_read_is_warned_of(patient: Patient) -> None:
    (patient.root / "dev/kmsg").unlink()
    assert patient.lines()["kernel log"].state == "warn"


def test_tools_that_are_not_there_are_warned_of(patient: Patient) -> None:
    patient.tools.unlink()
    assert "host.gpu_tools" in patient.lines()["gpu tools"].mend


def test_nvml_that_cannot_be_asked_is_warned_of(patient: Patient) -> None:
    patient.tree.bind(BDF, "nvidia")
    line = patient.lines()["nvml"]
    assert (line.state, "cannot be loaded" in line.detail) == ("warn", True)


def test_nvml_that_answers_is_told_with_its_driver(patient: Patient) -> None:
    patient.tree.bind(BDF, "nvidia")
    nvml = Nvml(patient.root / "nvml")
    nvml.gpu(BDF)
    patient.library = str(nvml.library)
    assert patient.lines()["nvml"].detail == "driver 580.95.05; 1 of 8"


def test_what_nvml_tells_nothing_of_is_told(patient: Patient) -> None:
    other = "0000:2a:00.0"
    for bdf in (BDF, other):
        patient.tree.bind(bdf, "nvidia")
    nvml = Nvml(patient.root / "nvml")
    nvml.gpu(BDF, fabric="3 0 0 0x1a6")
    nvml.gpu(other, handle=15)
    patient.library = str(nvml.library)
    lines = patient.lines()
    assert lines[f"gpu {other}"].state == "error"
    assert "reboot the host" in lines[f"gpu {other}"].detail
    assert "routes are being recovered" in lines[f"gpu {BDF}"].detail
    assert lines["nvml"].state == "ok"


def test_a_gpu_without_address_space_is_an_error_with_its_mend(patient: Patient) -> None:
    first = (patient.tree.devices / BDF / "resource").read_text().splitlines()[0]
    patient.tree.put(BDF, "resource", first)
    line = patient.lines()[f"gpu {BDF}"]
    assert (line.state, "above-4G decoding" in line.detail) == ("error", True)


def test_errors_that_nobody_counts_are_warned_of(patient: Patient) -> None:
    patient.tree.drop(BDF, "aer_dev_fatal")
    line = patient.lines()["pcie errors"]
    assert (line.state, BDF in line.detail) == ("warn", True)


def test_a_node_that_is_not_known_is_warned_of_where_there_are_several(patient: Patient) -> None:
    for node in (0, 1):
        patient.put(f"sys/devices/system/node/node{node}/cpulist", "0")
    assert patient.lines()["numa"].state == "ok"
    patient.tree.put(BDF, "numa_node", "-1")
    assert patient.lines()["numa"].state == "warn"


def test_a_sick_gpu_has_a_line_of_its_own_with_what_to_do(patient: Patient) -> None:
    patient.tree.fall_off(BDF)
    patient.tree.put("0000:2a:00.0", "current_link_width", "8")
    lines = patient.lines()
    assert lines[f"gpu {BDF}"].state == "error"
    assert lines["gpu 0000:2a:00.0"].state == "warn"
    assert "8 of 16 lanes" in lines["gpu 0000:2a:00.0"].detail
    assert "gpu health" not in lines


@pytest.mark.parametrize(
    ("capacity", "current", "state"),
    [("sev_es 99", "sev_es 3", "ok"), ("sev_es 99", "sev_es 99", "warn"), ("sev 1", "", "warn")],
)
def test_tee_ids_that_are_used_up_or_not_told_are_warned_of(
    patient: Patient, capacity: str, current: str, state: str
) -> None:
    patient.put("sys/module/kvm_amd/parameters/sev_snp", "Y")
    patient.put("cgroup/misc.capacity", capacity)
    patient.put("cgroup/misc.current", current)
    assert patient.lines()["tee ids"].state == state


def test_memory_that_is_set_aside_as_huge_pages_is_warned_of(patient: Patient) -> None:
    patient.put("sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages", "64")
    line = patient.lines()["hugepages"]
    assert (line.state, "65536 MiB" in line.detail) == ("warn", True)


def test_what_is_left_alone_is_said_with_the_reason_and_odd_names_are_told(
    patient: Patient,
) -> None:
    patient.gpus = GpusConfig(exclude=(BDF, "slot:nowhere"))
    lines = patient.lines()
    assert "left alone: gpus.exclude names it" in lines[f"gpu {BDF} use"].detail
    assert lines["gpus.exclude"].state == "warn"
    assert "slot:nowhere" in lines["gpus.exclude"].detail


def test_who_holds_a_gpu_is_told_with_what_ends_it(patient: Patient) -> None:
    patient.tree.bind(BDF, "nouveau")
    folder = patient.tree.devices / BDF / "drm/renderD128"
    folder.mkdir(parents=True)
    process = patient.root / "proc/12"
    (process / "fd").mkdir(parents=True)
    (process / "comm").write_text("nvidia-persiste\n")
    (process / "cgroup").write_text("0::/system.slice/nvidia-persistenced.service\n")
    (process / "fd/3").symlink_to("/dev/dri/renderD128")
    line = patient.lines()[f"gpu {BDF} use"]
    assert line.state == "warn"
    assert "nvidia-persistenced.service" in line.detail
    assert "systemctl stop nvidia-persistenced.service" in line.mend
    (process / "cmdline").write_bytes(b"python3\0-m\0agent.inventory.nvml.child\0lib\0")
    assert f"gpu {BDF} use" not in patient.lines()  # the agent's own look goes away by itself
    (process / "cmdline").write_bytes(b"nvidia-persistenced\0")
    patient.gpus = GpusConfig(stop_units=("nvidia-persistenced.service",))
    assert patient.lines()[f"gpu {BDF} use"].state == "ok"
