"""Does what the agent does with a privilege, and tries what it must not; tells each outcome.

A program, to be run under the restrictions of the shipped unit. Devices are a tree of sysfs with a
kernel behind it, for lack of hardware; the rest is the machine's own.

    python -m tests.fakes.privileged_actions HOME OTHER_PID
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import mmap
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from agent.enclaves.devices import open_tap
from agent.enclaves.links import Links
from agent.host.commands import run_command
from agent.host.lent_namespace import LentNamespace
from agent.host.units import LendError, beside_us, borrow, borrow_here, with_all_capabilities
from agent.inventory.preparation.card_identity import read_space, space_by
from agent.inventory.preparation.device_ops import DeviceOps
from agent.inventory.preparation.modes import ModeTool
from agent.model.gpu import CcMode
from agent.model.ids import Bdf
from agent.probes.outside_link import OutsideLink
from agent.traffic.haproxy_reset import ClientSession
from agent.traffic.haproxy_sessions import disconnect_by
from agent.traffic.nftables import NftablesTraffic
from simulator.pci_kernel import PciKernel, install_tool
from simulator.pci_pipes import served
from simulator.sysfs_tree import HGX_BUSES, pcie_boards

BDF = Bdf(f"0000:{HGX_BUSES[0]:02x}:00.0")


async def bind_and_reset(home: Path, other: int) -> None:
    del other
    tree = pcie_boards(home / "sys")
    tree.bind(BDF, "nvidia")
    (home / "proc").mkdir()
    kernel = PciKernel(tree)
    with served(kernel):
        device_ops = DeviceOps(tree.root, home / "proc", budget_s=5)
        failed = await device_ops.restore([BDF], [BDF], lambda _: None)
    assert not failed, failed
    assert f"reset {BDF}" in kernel.log
    assert kernel.drivers()[BDF] == "vfio-pci"


async def gpu_modes(home: Path, other: int) -> None:
    del other
    told = {"cc": "off", "ppcie": "off", "cc_next": "off", "ppcie_next": "off"}
    tool = ModeTool(str(install_tool(home, {BDF: told})))
    await tool.set(BDF, CcMode.ON, kinds=("cc",))
    assert (await tool.query(BDF, kinds=("cc",))).settled is CcMode.ON


async def configuration_space(home: Path, other: int) -> None:
    """Beyond its first 64 bytes the kernel wants CAP_SYS_ADMIN of whoever opened it."""
    del home, other
    devices = list(Path("/sys/bus/pci/devices").glob("*/config"))
    assert all(len(read_space(one)) <= 64 < len(space_by(borrow_here)(one)) for one in devices)


async def a_tool_with_all_capabilities(home: Path, other: int) -> None:
    del home, other
    done = await with_all_capabilities()(["cat", "/proc/self/status"])
    effective = int(done.stdout.decode().split("CapEff:\t")[1].split()[0], 16)
    assert effective >> 21 & 1, done


async def a_network_outside(home: Path, other: int) -> None:
    del home, other
    link = OutsideLink("probe7", create=LentNamespace.create)
    await link.have()
    (one,) = await link.sockets(1)
    one.close()
    link.close()
    async with asyncio.timeout(30):
        while "probe7" in (await run_command(["ip", "-br", "link"])).stdout.decode():
            await asyncio.sleep(0.02)


async def reset_anothers_client(home: Path, other: int) -> None:
    """As HAProxy's are: the descriptor is another process's."""
    del home, other
    holds = "import time; time.sleep(60)"
    with socket.create_server(("127.0.0.1", 0)) as listening:
        client = socket.create_connection(listening.getsockname())
        served, (host, port, *_) = listening.accept()
    with client, served:
        number = served.fileno()
        with subprocess.Popen([sys.executable, "-c", holds], pass_fds=(number,)) as holder:
            try:
                gone = [ClientSession(f"{host}:{port}", number)]
                await disconnect_by(beside_us())(holder.pid, gone)
                client.settimeout(10)
                with contextlib.suppress(ConnectionResetError):
                    raise AssertionError(f"it was not reset: {client.recv(1)!r}")
            finally:
                holder.kill()


async def tap_and_bridge(home: Path, other: int) -> None:
    del home, other
    links = Links(run_command)
    await links.change(["link add name probe0 type bridge", "tuntap add dev probe1 mode tap"])
    with contextlib.ExitStack() as held:
        open_tap(held, "probe1")
    await links.change(["link delete dev probe1", "link delete dev probe0"])


async def nft_and_sysctls(home: Path, other: int) -> None:
    del other
    traffic = NftablesTraffic(
        "probe9", "192.0.2.0/24", (), state_file=home / "sysctls", table="enclave_agent_probe9"
    )
    await traffic.start()
    await traffic.close()
    await traffic.restore()


async def raw_socket(home: Path, other: int) -> None:
    del home, other
    socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW).close()


async def another_users_process(home: Path, other: int) -> None:
    del home
    assert list(Path(f"/proc/{other}/fd").iterdir())
    pidfd = os.pidfd_open(other)
    try:
        signal.pidfd_send_signal(pidfd, 0)
    finally:
        os.close(pidfd)


async def take_anothers_descriptor(home: Path, other: int) -> None:
    del home
    pidfd = os.pidfd_open(other)
    try:
        taken = ctypes.CDLL(None, use_errno=True).syscall(438, pidfd, 0, 0)  # pidfd_getfd
        assert taken >= 0, os.strerror(ctypes.get_errno())
    finally:
        os.close(pidfd)


async def be_the_hosts_administrator(home: Path, other: int) -> None:
    del home, other
    effective = int(Path("/proc/self/status").read_text().split("CapEff:\t")[1].split()[0], 16)
    assert effective >> 21 & 1


async def turn_the_kernels_switches(home: Path, other: int) -> None:
    """Those that are not the network's."""
    del home, other
    switch = Path("/proc/sys/kernel/panic")
    switch.write_text(switch.read_text())


async def give_away(home: Path, other: int) -> None:
    del other
    (home / "given").mkdir()
    os.chown(home / "given", 61234, 61234)
    (home / "given" / "entered").touch()


async def make_a_namespace(home: Path, other: int) -> None:
    del home, other
    subprocess.run(["unshare", "--mount", "true"], check=True, capture_output=True)


async def write_to_usr(home: Path, other: int) -> None:
    del home, other
    Path("/usr/local/written").touch()


async def run_what_was_written(home: Path, other: int) -> None:
    del home, other
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()


async def read_the_kernels_log(home: Path, other: int) -> None:
    del home, other
    Path("/dev/kmsg").open("rb").close()


async def have_the_kernels_log_opened(home: Path, other: int) -> None:
    """By a unit that may; what it opened is read here. A container has this file alone of it."""
    del home, other
    fd = await borrow("read", "/proc/kmsg")
    try:
        with contextlib.suppress(BlockingIOError):
            os.read(fd, 8192)
    finally:
        os.close(fd)


async def have_a_port_of_the_machine_dialled(home: Path, other: int) -> None:
    """Nobody listens there: that it was tried, and not by us, is what can be seen."""
    del home, other
    with contextlib.suppress(LendError):
        os.close(await borrow("dial", "1", "40509"))
        raise AssertionError("somebody listens there")
    try:
        socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close()
    except OSError:
        return
    raise AssertionError("the unit is open to vsock")


async def become_another_user(home: Path, other: int) -> None:
    del home, other
    os.setuid(61234)


DONE = (
    bind_and_reset,
    gpu_modes,
    configuration_space,
    a_tool_with_all_capabilities,
    a_network_outside,
    reset_anothers_client,
    tap_and_bridge,
    nft_and_sysctls,
    raw_socket,
    another_users_process,
    give_away,
    have_the_kernels_log_opened,
    have_a_port_of_the_machine_dialled,
)
CLOSED = (
    make_a_namespace,
    write_to_usr,
    run_what_was_written,
    read_the_kernels_log,
    become_another_user,
    take_anothers_descriptor,
    be_the_hosts_administrator,
    turn_the_kernels_switches,
)


async def main(home: Path, other: int) -> dict[str, Any]:
    told = {}
    for action in (*DONE, *CLOSED):
        told[action.__name__] = await _outcome(action, home, other)
    return told


async def _outcome(action: Callable[[Path, int], Awaitable[None]], home: Path, other: int) -> str:
    try:
        await action(home, other)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "done"


if __name__ == "__main__":
    place = Path(sys.argv[1])
    place.mkdir(exist_ok=True)
    (place / "told.json").write_text(json.dumps(asyncio.run(main(place, int(sys.argv[2])))))
