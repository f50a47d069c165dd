"""VMs as systemd's units: how one is handed over, what its unit may do, how it is stopped.

systemd itself is tried in tests/systemd; here `systemd-run` is a program that only runs what it is
told to.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.enclaves import vm_start
from agent.enclaves.devices import devices_of
from agent.enclaves.spec import PlainTee, SevSnpTee, VmAccel
from agent.enclaves.supervisor import StartRequest, SupervisorError
from agent.enclaves.supervisor_systemd import SystemdSupervisor, properties
from agent.enclaves.unit_stop import stop
from agent.host.process import Process, argv_of, identify
from agent.model.ids import Bdf
from tests.fakes.qmp_server import QmpServer, serving

RUNS_IT = """\
#!/bin/sh
printf '%s\\n' "$@" >>"{log}"
{first}
while [ "$1" != -- ]; do shift; done
shift
exec 3<&0
"$@" <&3 3<&- &
wait
"""
BUSY = "Failed to start transient service unit: Unit u was already loaded or has a fragment file."


@pytest.fixture
def systemd_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Puts a `systemd-run` on the path that begins so; returns where it logs its arguments."""

    def make(first: str = "") -> Path:
        program, log = tmp_path / "bin" / "systemd-run", tmp_path / "log"
        program.parent.mkdir(exist_ok=True)
        program.write_text(RUNS_IT.format(log=log, first=first))
        program.chmod(0o755)
        return log

    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    return make


def request(tmp_path: Path, argv: list[str], *pass_fds: int) -> StartRequest:
    writable = tmp_path / "vm"
    writable.mkdir(exist_ok=True)
    return StartRequest(
        name="enclave-aaaaaaa2",
        argv=argv,
        pass_fds=pass_fds,
        output=tmp_path / "output",
        writable=(writable,),
        stop_socket=writable / "stop",
    )


async def ended(pid: int) -> None:
    identity = identify(pid)
    process = Process.open(identity) if identity else None
    if process is not None:
        await process.wait()
        process.close()


async def test_the_program_in_the_unit_becomes_the_vm_with_exactly_its_descriptors(
    tmp_path: Path, systemd_run: Callable[[], Path]
) -> None:
    log = systemd_run()
    files = []
    for number in range(3):
        path = tmp_path / f"file{number}"
        path.write_text(f"{number}")
        files.append(os.open(path, os.O_RDONLY))
    # In another order, so that one's place is taken by another until it is moved.
    numbers = (files[2], files[0], files[1])
    script = (
        "import os,sys,time;"
        f"print([os.read(n, 9) for n in {numbers}], os.listdir('/proc/self/fd'), "
        "sorted(os.environ), os.readlink('/proc/self/fd/0'), flush=True);"
        "time.sleep(60)"
    )
    wanted = request(tmp_path, [sys.executable, "-I", "-S", "-c", script, "-uuid", "u"], *numbers)
    identity = await SystemdSupervisor(5).start(wanted)
    process = Process.open(identity)
    assert process is not None
    try:
        assert argv_of(identity.pid)[-2:] == [b"-uuid", b"u"]
        while not (said := wanted.output.read_text()).endswith("\n"):
            await asyncio.sleep(0.01)
        contents, rest = said.split("] [", 1)
        assert contents == "[b'2', b'0', b'1'"
        listed = rest.split("]", 1)[0].replace("'", "").split(", ")
        assert len(listed) == 7  # with the listing's own
        assert {0, 1, 2, *numbers} < set(map(int, listed))
        assert "['LANG', 'PATH'] /dev/null" in rest.replace("'LC_CTYPE', ", "")
        assert "--slice=enclaves.slice" in log.read_text()
    finally:
        process.kill()
        await process.wait()
        process.close()
        for fd in files:
            os.close(fd)


async def test_a_program_that_is_not_there_is_told(
    tmp_path: Path, systemd_run: Callable[[], Path]
) -> None:
    systemd_run()
    with pytest.raises(SupervisorError, match="cannot start no-qemu: there is no no-qemu"):
        await SystemdSupervisor(5).start(request(tmp_path, ["no-qemu"]))


async def test_what_systemd_complains_of_is_told(
    tmp_path: Path, systemd_run: Callable[[str], Path]
) -> None:
    systemd_run("echo 'Failed to connect to bus: No such file' >&2; exit 1")
    with pytest.raises(
        SupervisorError, match=r"does not start the unit: Failed to connect to bus"
    ):
        await SystemdSupervisor(5).start(request(tmp_path, ["true"]))


async def test_a_unit_that_is_being_put_away_is_waited_for(
    tmp_path: Path, systemd_run: Callable[[str], Path]
) -> None:
    twice = f"[ $(grep -c -- --pipe {tmp_path}/log) -gt 2 ] || {{ echo '{BUSY}' >&2; exit 1; }}"
    log = systemd_run(twice)
    identity = await SystemdSupervisor(5).start(request(tmp_path, ["sleep", "0.1"]))
    await ended(identity.pid)
    assert log.read_text().count("--pipe") == 3


def test_without_an_agent_the_program_in_the_unit_ends_by_itself() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        program = subprocess.Popen(
            [sys.executable, "-I", "-S", vm_start.__file__], stdin=theirs, stderr=subprocess.PIPE
        )
    with ours:
        assert ours.recv(16) == vm_start.HERE
    _, complaint = program.communicate(timeout=10)
    assert program.returncode == 1
    assert b"went away" in complaint


def test_a_unit_opens_the_devices_of_its_vm_and_no_others(tmp_path: Path) -> None:
    said = list(properties(request(tmp_path, ["qemu"]), 60))
    assert "DevicePolicy=closed" in said
    assert not [one for one in said if one.startswith("DeviceAllow=")]
    assert {"DynamicUser=yes", "User=enclave-aaaaaaa2", "OOMPolicy=kill"} < set(said)
    assert {"LimitMEMLOCK=infinity", "MemoryAccounting=yes", "TimeoutStopSec=75"} < set(said)
    assert f"BindPaths={tmp_path}/vm" in said
    (stopping,) = (one for one in said if one.startswith("ExecStop="))
    assert stopping.endswith(f"unit_stop.py {tmp_path}/vm/stop 60")
    assert not set("'\"$\\") & set(stopping)


def test_the_unit_of_a_deaf_image_does_not_wait_for_its_guest(tmp_path: Path) -> None:
    given = dataclasses.replace(request(tmp_path, ["qemu"]), asks_guest=False)
    (stopping,) = (one for one in properties(given, 60) if one.startswith("ExecStop="))
    assert stopping.endswith(f"unit_stop.py {tmp_path}/vm/stop 0")


def test_a_configured_user_is_the_units(tmp_path: Path) -> None:
    wanted = request(tmp_path, ["qemu"])
    given = StartRequest(
        name=wanted.name,
        argv=wanted.argv,
        pass_fds=(),
        output=wanted.output,
        user="qemu",
        devices=(Path("/dev/null"),),
    )
    said = list(properties(given, 5))
    assert {"User=qemu", "DynamicUser=no", "DeviceAllow=/dev/null rw"} < set(said)


def test_the_devices_of_a_vm_are_its_acceleration_and_its_own_gpus(tmp_path: Path) -> None:
    assert devices_of(VmAccel.TCG, PlainTee(), ()) == ()
    assert devices_of(VmAccel.KVM, PlainTee(), ()) == (Path("/dev/kvm"),)
    snp = SevSnpTee(cbitpos=51, reduced_phys_bits=1)
    assert devices_of(VmAccel.KVM, snp, ()) == (Path("/dev/kvm"), Path("/dev/sev"))
    bdf = Bdf("0000:17:00.0")
    device = tmp_path / "bus/pci/devices" / bdf
    (device / "vfio-dev/vfio3").mkdir(parents=True)
    (tmp_path / "kernel/iommu_groups/42").mkdir(parents=True)
    (device / "iommu_group").symlink_to(tmp_path / "kernel/iommu_groups/42")
    assert devices_of(VmAccel.KVM, PlainTee(), (bdf,), tmp_path) == tuple(
        Path("/dev", name)
        for name in ("kvm", "iommu", "vfio/vfio", "vfio/42", "vfio/devices/vfio3")
    )


async def test_a_stop_powers_the_guest_off_and_then_has_qemu_end(short_dir: Path) -> None:
    path = short_dir / "stop"
    async with serving(QmpServer("u"), path) as server:
        server.answers |= {"system_powerdown": {}, "quit": {}}
        stopping = asyncio.create_task(asyncio.to_thread(stop, str(path), 10))
        while "system_powerdown" not in server.commands:
            await asyncio.sleep(0.01)
        server.emit("POWERDOWN")
        server.answers["query-status"] = {"status": "shutdown", "running": False}
        assert await stopping == "the guest powered off"
        assert server.commands[-1] == "quit"


async def test_a_guest_that_does_not_hear_it_is_ended_after_its_grace(short_dir: Path) -> None:
    path = short_dir / "stop"
    async with serving(QmpServer("u"), path) as server:
        server.answers |= {"system_powerdown": {}, "quit": {}}
        said = await asyncio.to_thread(stop, str(path), 0.3)
        assert said == "the guest did not end within 0.3 s"
        assert server.commands[-1] == "quit"


async def test_without_a_grace_qemu_ends_at_once_and_the_guest_is_not_asked(
    short_dir: Path,
) -> None:
    path = short_dir / "stop"
    async with serving(QmpServer("u"), path) as server:
        server.answers |= {"quit": {}}
        assert "was not asked" in await asyncio.to_thread(stop, str(path), 0)
        assert "system_powerdown" not in server.commands
        assert server.commands[-1] == "quit"


def test_a_vm_that_is_gone_is_nobody_to_be_asked(short_dir: Path) -> None:
    assert "not there to be asked" in stop(str(short_dir / "none"), 1)
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(short_dir / "dead"))
    dead.close()
    assert "not there to be asked" in stop(str(short_dir / "dead"), 1)


def test_the_stop_of_a_unit_is_a_program_of_its_own(short_dir: Path) -> None:
    program = Path(vm_start.__file__).with_name("unit_stop.py")
    argv = [sys.executable, "-I", "-S", program, short_dir / "none", "1"]
    with_qemu = subprocess.run(argv, capture_output=True, check=True, env={"MAINPID": "1"})
    assert b"not there to be asked" in with_qemu.stdout
    without = subprocess.run(argv, capture_output=True, check=True, env={})
    assert without.stdout == b""
