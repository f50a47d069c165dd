"""The command lines against the real parser: started, but with the guest's CPUs stopped."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from agent.enclaves.spec import FileSource, Forward, PathFile, SimulatedTee, TapNic, VmSpec
from tests.fakes import vm_specs
from tests.fakes.argv_bench import (
    QEMU,
    Bench,
    addresses,
    key_paths,
    look,
    misspelt,
    on_tcg,
    started,
    until_listening,
)

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(shutil.which(QEMU) is None, reason="no QEMU here"),
]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with ExitStack() as stack:
        yield Bench(tmp_path, stack)


@pytest.fixture
def tap() -> Iterator[TapNic]:
    if os.geteuid() != 0:
        pytest.skip("a tap link needs root")
    name = "vargv-tap0"
    subprocess.run(["ip", "tuntap", "add", name, "mode", "tap"], check=True)
    try:
        yield TapNic(name, vm_specs.MAC)
    finally:
        subprocess.run(["ip", "link", "del", name], check=True)


Make = Callable[[Bench, Path], VmSpec]

USER_SPECS: dict[str, Make] = {
    "plain-kvm-user": lambda b, q: vm_specs.base(b.inherited, vm_specs.user_nic(), q),
    "plain-tcg-user-models-volumes": lambda b, q: vm_specs.with_data_disks(
        vm_specs.base(b.mixed, vm_specs.user_nic(), q), b.mixed
    ),
    "simulated-tcg-user": lambda b, q: vm_specs.simulated(
        vm_specs.base(b.inherited, vm_specs.user_nic(), q), b.inherited, b.directory / "p,x y"
    ),
    "every disk inherited": lambda b, q: vm_specs.with_data_disks(
        vm_specs.base(b.inherited, vm_specs.user_nic(), q), b.inherited
    ),
}


@pytest.mark.parametrize("name", USER_SPECS)
async def test_qemu_takes_the_command_line(name: str, bench: Bench) -> None:
    qmp_socket = bench.directory / "q"
    spec = USER_SPECS[name](bench, qmp_socket)
    seen = await look(on_tcg(spec), bench.fds, qmp_socket)
    assert seen["status"]["status"] == "prelaunch"
    assert seen["name"] == {"name": "enclave-abcd2345"}
    assert seen["uuid"] == {"UUID": spec.launch_uuid}
    assert seen["append"] == vm_specs.CMDLINE
    assert seen["console"] == ""
    placed = addresses(seen["pci"])
    assert placed["nic"] == "02.0"
    assert [placed[f"{n}-disk"] for n in ("root", "config", "ext-config")] == [
        "04.0",
        "05.0",
        "06.0",
    ]
    assert seen["serials"]["root-disk"] == "tinfoil-rootdisk"
    assert seen["serials"]["config-disk"] == "tinfoil-config"
    assert seen["serials"]["ext-config-disk"] == "tinfoil-ext-config"
    read_only = {n["node-name"]: n["ro"] for n in seen["nodes"]}
    assert read_only["root"] is read_only["config"] is read_only["ext-config"] is True
    if isinstance(spec.tee, SimulatedTee):
        assert placed["sim-psp-bus"] == "1f.4"
        assert spec.tee.psp_socket in seen["sockets"]
    if spec.models:
        assert [placed[f"data{n}-disk"] for n in (1, 2, 3)] == ["07.0", "08.0", "09.0"]
        assert [read_only[f"data{n}"] for n in (1, 2, 3)] == [True, True, False]
        assert seen["serials"]["data2-disk"] == "tinfoil-modelwrap2"


@pytest.mark.root
@pytest.mark.parametrize("gpus", [False, True], ids=["plain-tcg-tap", "plain-kvm-tap-gpus"])
async def test_qemu_takes_the_command_line_with_a_tap(
    gpus: bool, bench: Bench, tap: TapNic
) -> None:
    qmp_socket = bench.directory / "q"
    spec = vm_specs.base(bench.inherited, tap, qmp_socket)
    if gpus:
        spec = vm_specs.with_gpus(spec)
    seen = await look(on_tcg(spec), bench.fds, qmp_socket)
    placed = addresses(seen["pci"])
    assert placed["nic"] == "02.0"
    if gpus:
        assert [placed[f"port{n}"] for n in (1, 2, 3)] == ["01.0", "01.1", "03.0"]
        behind = seen["behind"]
        assert behind == {f"passed{n}": f"/machine/peripheral/port{n}/port{n}" for n in (1, 2, 3)}


async def test_firmware_is_read_from_the_descriptor(bench: Bench) -> None:
    qmp_socket = bench.directory / "q"
    spec = vm_specs.base(bench.inherited, vm_specs.user_nic(), qmp_socket)
    spec = dataclasses.replace(spec, firmware=bench.inherited("kernel-as-firmware", False))
    with started(on_tcg(spec), bench.fds) as process:
        _, stderr = process.communicate(timeout=30)
    assert b"could not load PC BIOS '/proc/self/fd/" in stderr  # 8 KiB are not whole 64 KiB

    qmp_socket.unlink()
    firmware = bench.directory / "firmware"
    firmware.write_bytes(bytes(64 << 10))
    spec = dataclasses.replace(spec, firmware=PathFile(firmware))
    seen = await look(on_tcg(spec), bench.fds, qmp_socket)
    assert seen["firmware"] == str(firmware)


async def test_the_host_reaches_a_forwarded_port(bench: Bench) -> None:
    qmp_socket = bench.directory / "q"
    own = Forward(f"127.217.{os.getpid() % 250}.2", 20000, 443)
    spec = vm_specs.base(bench.inherited, vm_specs.user_nic(own), qmp_socket)
    with started(on_tcg(spec), bench.fds) as process:
        await until_listening(process, qmp_socket)
        _, writer = await asyncio.open_connection(own.host_address, own.host_port)
        writer.close()


async def test_odd_paths_reach_qemu_as_they_are(bench: Bench) -> None:
    odd = """a b,c=d,,e"f\\g'é,readonly=off"""
    qmp_socket = bench.directory / "q,path=x,server=off y"

    def files(name: str, writable: bool) -> FileSource:
        return bench.by_path(f"{name}{odd}", writable)

    spec = vm_specs.base(files, vm_specs.user_nic(), qmp_socket)
    spec = dataclasses.replace(spec, cmdline="a=1,b=2  kernel=/etc/passwd -drive file=x")
    seen = await look(on_tcg(spec), [], qmp_socket)
    assert seen["append"] == spec.cmdline
    assert seen["kernel"] == str(bench.directory / f"kernel{odd}")
    opened = {n["node-name"]: n["file"] for n in seen["nodes"]}
    assert (
        opened["root"].endswith(f"root{odd}")
        or odd in json.loads(opened["root"][5:])["file"]["filename"]
    )


def json_options(argv: list[str]) -> list[tuple[int, dict[str, Any]]]:
    return [(place, json.loads(word)) for place, word in enumerate(argv) if word.startswith("{")]


COMPLAINT = re.compile(r"Parameter '[^']*' is (missing|unexpected)|not found|missing", re.I)


@pytest.mark.slow
def test_every_misspelt_key_is_refused(bench: Bench) -> None:
    """Else a key of ours that QEMU ignores could hide for years."""
    own = Forward(f"127.217.{os.getpid() % 250}.1", 20001, 443)
    spec = vm_specs.base(bench.inherited, vm_specs.user_nic(own), bench.directory / "q")
    spec = vm_specs.with_data_disks(spec, bench.inherited)
    spec = vm_specs.simulated(spec, bench.inherited, bench.directory / "p")
    argv = on_tcg(vm_specs.with_gpus(spec))
    tried: set[tuple[object, ...]] = set()
    with started([*argv, "-device", '{"driver":"no-such"}'], bench.fds) as process:
        assert b"'no-such' is not" in process.communicate(timeout=30)[1]  # all else was taken
    for place, value in json_options(argv):
        for path in key_paths(value):
            kind = (argv[place - 1], value.get("driver"), *path)
            if kind in tried:
                continue
            tried.add(kind)
            words = [*argv[:place], misspelt(value, path), *argv[place + 1 :]]
            with started(words, bench.fds) as process:
                _, stderr = process.communicate(timeout=30)
            assert process.returncode == 1, (path, value)
            assert COMPLAINT.search(stderr.decode()), (path, value, stderr)
    assert len(tried) > 35
