"""The real daemon on each host that `scripts/simulate-host` makes, GPUs handed out included."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from simulator.machine import SimulatedHostError, SimulatedMachine
from simulator.profiles import PROFILES
from simulator.stand_in import with_stand_ins
from tests.fakes.daemon_process import CHECKOUT, Daemon, place
from tests.fakes.fake_vms import fake_releases, install, settings
from tests.fakes.guest_releases import config_of, guest_image, make_releases
from tests.fakes.warm_start import WARM

CONFIGS = {
    "v1": config_of(gpus=1),
    "v2": config_of(gpus=1),
    "whole1": config_of(gpus=8),
    "whole2": config_of(gpus=8),
}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A QEMU that is up at once, and releases for it."""
    directory = tmp_path_factory.mktemp("fake")
    return install(directory), fake_releases(directory, CONFIGS)


@pytest.fixture
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SimulatedMachine]:
    made = SimulatedMachine(tmp_path / "host")
    made.make(PROFILES[request.param])
    yield made
    made.stop()


@pytest.fixture
async def daemon(machine: SimulatedMachine, parts: tuple[Path, Path]) -> AsyncIterator[Daemon]:
    program, source = parts
    host = {**machine.keys, "vcpus": 8}
    more = settings(program, host=host, inventory={"interval_s": 0.2})
    made = Daemon(place(), source, settings=more, **WARM)
    await made.up()
    yield made
    await made.leave()


async def inventory(daemon: Daemon) -> Any:
    """Once NVML has said what it sees."""
    async with asyncio.timeout(30):
        while True:
            shown = (await daemon.get("/v1/inventory")).body
            if all(gpu["seen_by"] == ["pci", "nvml"] for gpu in shown["gpus"]):
                return shown
            await asyncio.sleep(0.05)


async def plan(daemon: Daemon, gpus: int) -> tuple[str, list[str]]:
    """The strategy and the reasons' codes."""
    demand = {"gpus": gpus, "memory_mib": 256, "vcpus": 1}
    body = (await daemon.send("POST", "/v1/plan", {"demand": demand})).body
    return body["strategy"], [reason["code"] for reason in body["reasons"]]


async def clean(daemon: Daemon, free: int) -> dict[str, int]:
    """The counts of GPUs, once so many are free."""
    async with asyncio.timeout(30):
        while (counts := (await daemon.get("/status")).body["gpus"])["free"] != free:
            await asyncio.sleep(0.05)
    return counts


EXPECTED = {  # of the others test_idle_hosts.py tells what is seen
    "hgx-h100": (8, 4, "NVIDIA H100 80GB HBM3 (simulated)", "fresh"),
    "hgx-b200": (8, 0, "NVIDIA B200 (simulated)", "fresh"),
    "2xh100-pcie": (2, 0, "NVIDIA H100 PCIe (simulated)", "refuse"),
    "cpu-only": (0, 0, None, "refuse"),
}


@pytest.mark.parametrize("machine", EXPECTED, indirect=True)
async def test_the_daemon_sees_and_plans_with_what_each_host_has(
    daemon: Daemon, machine: SimulatedMachine
) -> None:
    assert machine.profile is not None
    gpus, switches, name, whole = EXPECTED[machine.profile.name]
    shown = await inventory(daemon)
    assert (len(shown["gpus"]), len(shown["switches"])) == (gpus, switches)
    assert {gpu["name"] for gpu in shown["gpus"]} == ({name} if name else set())
    assert {gpu["uuid"] for gpu in shown["gpus"]} == {
        f"GPU-simulated-{number:04d}" for number in range(gpus)
    }
    assert [ids["total"] for ids in shown["host"]["tee_ids"]] == [99]
    assert len(shown["host"]["numa_nodes"]) == machine.profile.nodes
    async with asyncio.timeout(30):  # an outlook may be some seconds old
        while (capacity := (await daemon.get("/v1/capacity")).body)["free"]["gpus"] != gpus:
            await asyncio.sleep(0.05)
    assert capacity["total"]["gpus"] == gpus
    assert await plan(daemon, 1) == (("fresh", []) if gpus else ("refuse", ["gpus_insufficient"]))
    strategy, reasons = await plan(daemon, 8)
    assert (strategy, bool(reasons)) == (whole, whole == "refuse")


@pytest.mark.parametrize("machine", ["hgx-h100"], indirect=True)
async def test_one_gpu_is_updated_beside_the_old_and_a_whole_board_after_it(
    daemon: Daemon, machine: SimulatedMachine
) -> None:
    assert (await daemon.deploy(tag="v1")).status == 202
    assert (await daemon.over())["status"] == "completed"
    (first,) = (await daemon.deployment())["enclaves"]
    assert (await daemon.update(tag="v2")).status == 202
    update = await daemon.over()
    assert (update["status"], update["strategy"]) == ("completed", "blue_green"), update
    (second,) = (await daemon.deployment())["enclaves"]
    assert set(first["gpus"]).isdisjoint(second["gpus"])
    assert (await clean(daemon, free=7))["in_use"] == 1
    gpu = next(one for one in (await inventory_now(daemon))["gpus"] if one["owner"])
    # NVML sees it no more, who it is stays known
    assert (gpu["driver"], gpu["seen_by"]) == ("vfio-pci", ["pci"])
    assert gpu["uuid"].startswith("GPU-simulated-")
    assert (await plan(daemon, 8))[1] == ["gpus_insufficient"]

    assert (await daemon.send("DELETE", "/v1/deployments/hello")).status in (202, 204)
    await daemon.until(lambda seen: seen is None)
    await clean(daemon, free=8)
    assert (await daemon.deploy(tag="whole1")).status == 202
    assert (await daemon.over())["status"] == "completed"
    assert (await clean(daemon, free=0))["in_use"] == 8
    assert all(one["owner"] for one in (await inventory_now(daemon))["switches"])
    assert (await daemon.update(tag="whole2")).status == 202
    update = await daemon.over()
    assert (update["status"], update["strategy"]) == ("completed", "stop_then_start")
    assert update["downtime_s"] > 0


@pytest.mark.qemu
@pytest.mark.slow
@pytest.mark.parametrize("machine", ["2xh100-pcie"], indirect=True)
async def test_a_real_vm_has_a_stand_in_where_its_gpu_would_be(
    machine: SimulatedMachine, tmp_path: Path
) -> None:
    source = tmp_path / "releases"
    make_releases(source, {"v1": config_of(gpus=1)}, guest_image())
    host = {**machine.keys, "vcpus": 8}
    more = {"qemu": {"binary": str(machine.qemu)}, "host": host, "inventory": {"interval_s": 0.2}}
    daemon = Daemon(place(), source, settings=more)
    try:
        await daemon.up()
        assert (await daemon.deploy(tag="v1")).status == 202
        update = await daemon.over()
        assert update["status"] == "completed", update["error"]
        (enclave,) = (await daemon.deployment())["enclaves"]
        argv = Path(f"/proc/{enclave['pid']}/cmdline").read_bytes().split(b"\0")
        assert argv[0] == b"qemu-system-x86_64"
        devices = [json.loads(word) for word in argv if word.startswith(b'{"driver"')]
        (stand_in,) = [one for one in devices if one["driver"] == "pci-testdev"]
        ports = [one["id"] for one in devices if one["driver"] == "pcie-root-port"]
        assert [stand_in["bus"]] == ports
        assert len(enclave["gpus"]) == 1
    finally:
        await daemon.leave()


async def inventory_now(daemon: Daemon) -> Any:
    return (await daemon.get("/v1/inventory")).body


def simulate(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "simulator", *words],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_it_prints_the_configuration_and_leaves_what_is_not_its_own_alone(tmp_path: Path) -> None:
    directory = tmp_path / "host"
    made = simulate("--profile", "cpu-only", str(directory))
    machine = SimulatedMachine(directory)
    assert made.returncode == 0, made.stderr
    printed = yaml.safe_load(made.stdout)
    assert printed == {"host": machine.keys, "qemu": {"binary": str(machine.qemu)}}
    assert all(Path(path).exists() for path in machine.keys.values())
    assert machine.pid() is not None
    again = simulate("--profile", "2xh100-pcie", str(directory))  # another, in its place
    assert (again.returncode, machine.profile) == (0, PROFILES["2xh100-pcie"]), again.stderr
    (directory / "profile").write_text("")  # as one whose making was cut off
    assert machine.profile is None
    assert simulate("--profile", "cpu-only", str(directory)).returncode == 0
    assert simulate("--stop", str(directory)).returncode == 0
    assert machine.pid() is None
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    with pytest.raises(SimulatedHostError, match="not empty"):
        SimulatedMachine(tmp_path / "kept").make(PROFILES["cpu-only"])


def test_a_stand_in_is_put_for_each_passed_device_and_nothing_else_is_changed() -> None:
    passed = {"driver": "vfio-pci", "id": "passed1", "bus": "port1", "host": "0000:18:00.0"}
    kept = ["-object", "memory-backend-ram,id=iommufd", "-device", "virtio-net-pci", "-S"]
    dropped = ["-object", "iommufd,id=iommufd0", "-device", json.dumps(passed)]
    json_object = ["-object", json.dumps({"qom-type": "iommufd", "id": "iommufd0"})]
    assert list(with_stand_ins([*dropped, *json_object, *kept])) == [
        "-device",
        json.dumps({"driver": "pci-testdev", "id": "passed1", "bus": "port1"}),
        *kept,
    ]
