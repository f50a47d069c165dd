"""Who uses a GPU, by every file and every use; and the services that are stopped for it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from agent.host.commands import CompletedCommand
from agent.inventory.preparation.errors import GpuHeldError, Holder, UnqualifiedError
from agent.inventory.preparation.functions import look
from agent.inventory.preparation.holders import find_holders
from agent.inventory.preparation.observers import Observers
from agent.model.gpu import CcMode
from agent.model.ids import Bdf
from simulator.pci_kernel import Died
from simulator.sysfs_tree import GPU, HGX_BUSES, SysfsTree, pcie_boards, with_virtual_function
from tests.fakes.preparation import ENCLAVE, GpuHost

CARD, OTHER = (Bdf(f"0000:{bus:02x}:00.0") for bus in HGX_BUSES[:2])
AUDIO = Bdf(f"{CARD[:-1]}1")
PERSISTENCED = "nvidia-persistenced.service"


@pytest.fixture
def host(tmp_path: Path) -> GpuHost:
    """Two cards with their audio; the first is the NVIDIA driver's, as its /dev/nvidia2."""
    tree = pcie_boards(tmp_path / "sys")
    tree.bind(CARD, "nvidia")
    host = GpuHost(tree, (CARD, OTHER), tmp_path / "proc", confidential=False)
    for bdf, minor in ((CARD, 2), (OTHER, 5)):
        folder = host.proc / "driver/nvidia/gpus" / bdf
        folder.mkdir(parents=True)
        (folder / "information").write_text(f"Model: NVIDIA H100\nDevice Minor: \t {minor}\n")
    for bdf, kind, name, node in (
        (CARD, "drm", "card3", "dri/card3"),
        (CARD, "drm", "renderD130", "dri/renderD130"),
        (OTHER, "drm", "card4", "dri/card4"),
        (AUDIO, "sound/card1", "controlC1", "snd/controlC1"),
        (CARD, "i2c-7/i2c-dev", "i2c-7", "i2c-7"),
    ):
        shown(tree, bdf, f"{kind}/{name}", node)
    cap(host, "gpu2/mig/gi1/access", 21)
    cap(host, "gpu5/mig/gi1/access", 57)
    cap(host, "mig/config", 1)
    return host


def shown(tree: SysfsTree, bdf: str, below: str, node: str) -> None:
    """What sysfs shows of a node below a function."""
    folder = tree.devices / bdf / below
    folder.mkdir(parents=True)
    (folder / "dev").write_text("226:3\n")
    (folder / "uevent").write_text(f"MAJOR=226\nDEVNAME={node}\n")


def cap(host: GpuHost, where: str, minor: int) -> None:
    path = host.proc / "driver/nvidia/capabilities" / where
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"DeviceFileMinor: {minor}\nDeviceFileMode: 292\n")


def in_unit(host: GpuHost, pid: int, program: str, path: str, targets: Sequence[str]) -> None:
    host.hold(pid, program, targets)
    (host.proc / str(pid) / "cgroup").write_text(f"0::{path}\n")


@pytest.mark.parametrize(
    "target",
    [
        "/dev/nvidia2",
        "/dev/nvidia2 (deleted)",
        "/srv/trial/dev/nvidia2",
        "/var/lib/machines/dev/trial/dev/dri/card3",
        "/dev/nvidia-caps/nvidia-cap21",
        "/dev/dri/card3",
        "/dev/dri/renderD130",
        "/dev/snd/controlC1",
        "/dev/i2c-7",
        f"/sys/devices/pci0000:17/0000:17:01.0/{CARD}/resource1_wc",
        f"/sys/devices/pci0000:17/0000:17:01.0/{AUDIO}/config",
    ],
)
async def test_whoever_has_a_node_of_it_open_holds_it_and_nothing_is_touched(
    host: GpuHost, target: str
) -> None:
    host.hold(41, "Xorg", ["/dev/null", target])
    await host.claim(CARD)
    with pytest.raises(GpuHeldError, match=r"held by Xorg \(pid 41"):
        await host.preparer().make_ready(ENCLAVE, [CARD], CcMode.OFF)
    assert host.kernel.log == []


async def test_nodes_of_all_gpus_together_and_those_of_others_hold_none(host: GpuHost) -> None:
    host.hold(
        42,
        "nvidia-smi",
        [
            *("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia-modeset"),
            *("/dev/nvidia5", "/dev/nvidia-caps/nvidia-cap57", "/dev/nvidia-caps/nvidia-cap1"),
            *("/dev/dri/card4", "/dev/dri/card30", "/dev/vfio/vfio", "/dev/iommu"),
            *("/srv/dev/nvidia2/log", "/srv/trial/dev/nvidia5", "/srv/nvidia2"),
        ],
    )
    await host.claim(CARD)
    await host.preparer().make_ready(ENCLAVE, [CARD], CcMode.OFF)


async def test_a_node_of_a_virtual_functions_group_holds_the_card(host: GpuHost) -> None:
    virtual = with_virtual_function(host.tree, CARD)
    host.tree.bind(virtual, None)
    (host.tree.devices / CARD / "virtfn0").symlink_to(f"../{virtual}")
    host.tree.join(virtual, 99)
    host.hold(43, "qemu-system-x86", ["/dev/vfio/99"])
    await host.claim(CARD)
    with pytest.raises(GpuHeldError, match="qemu-system-x86"):
        await host.preparer().make_ready(ENCLAVE, [CARD], CcMode.OFF)


async def test_virtual_functions_in_use_hold_their_card(host: GpuHost) -> None:
    virtual = with_virtual_function(host.tree, CARD)
    (host.tree.devices / CARD / "virtfn0").symlink_to(f"../{virtual}")
    await host.claim(CARD)
    with pytest.raises(GpuHeldError, match=f"virtual function {virtual}, which nvidia has"):
        await host.preparer().make_ready(ENCLAVE, [CARD], CcMode.OFF)
    assert host.kernel.log == []
    host.tree.bind(virtual, None)  # one that nobody has hinders nobody
    await host.preparer().make_ready(ENCLAVE, [CARD], CcMode.OFF)


async def test_a_driver_that_has_a_card_for_somebody_holds_it(host: GpuHost) -> None:
    host.tree.bind(CARD, "somebodys-driver")
    await host.claim(CARD)
    with pytest.raises(GpuHeldError, match="the driver somebodys-driver"):
        await host.preparer().make_ready(ENCLAVE, [CARD], CcMode.OFF)
    assert host.kernel.log == []


async def test_a_mediated_device_holds_its_card(host: GpuHost) -> None:
    name = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001"
    (host.tree.devices / CARD / name).mkdir()
    await host.claim(CARD)
    with pytest.raises(GpuHeldError, match=f"mediated device {name}"):
        await host.preparer().make_ready(ENCLAVE, [CARD], CcMode.OFF)
    assert host.kernel.log == []


@pytest.mark.parametrize("way", ["boot_vga", "connector"])
async def test_the_hosts_display_is_held_by_the_host(host: GpuHost, way: str) -> None:
    host.tree.put(CARD, "class", f"0x{GPU:06x}")
    if way == "boot_vga":
        host.tree.put(CARD, "boot_vga", "1")
    else:
        folder = host.tree.devices / CARD / "drm/card3/card3-DP-1"
        folder.mkdir()
        (folder / "enabled").write_text("enabled\n")
    await host.claim(CARD)
    with pytest.raises(GpuHeldError, match="display"):
        await host.preparer().make_ready(ENCLAVE, [CARD], CcMode.OFF)
    assert host.kernel.log == []
    one = look(host.tree.root, CARD)
    assert one is not None
    assert find_holders([one], host.proc, gives_display=lambda _: True) == ()
    host.tree.bind(CARD, "pci-stub")  # whoever did that has given the display up
    await host.preparer().make_ready(ENCLAVE, [CARD], CcMode.OFF)


@pytest.mark.parametrize(
    ("program", "path", "unit", "observes", "mend"),
    [
        (
            "nvidia-persistenced",
            f"/system.slice/{PERSISTENCED}",
            PERSISTENCED,
            True,
            f"systemctl stop {PERSISTENCED}, or name it in gpus.stop_units",
        ),
        (
            "nv-hostengine",
            "/system.slice/nvidia-dcgm.service",
            "nvidia-dcgm.service",
            True,
            "systemctl stop nvidia-dcgm.service, or name it in gpus.stop_units",
        ),
        (
            "python3",
            "/system.slice/train.service",
            "train.service",
            False,
            "systemctl stop train.service",
        ),
        (
            "python3",
            "/user.slice/user-7.slice/user@7.service/app.slice/term.scope",
            "term.scope",
            False,
            "end process 9 of term.scope",
        ),
        ("python3", "/", None, False, "end process 9"),
    ],
)
async def test_a_holder_is_told_with_its_unit_and_what_ends_it(
    host: GpuHost, program: str, path: str, unit: str | None, observes: bool, mend: str
) -> None:
    in_unit(host, 9, program[:15], path, ["/dev/nvidia2"])
    one = look(host.tree.root, CARD)
    assert one is not None
    (holder,) = find_holders([one], host.proc)
    assert (holder.unit, holder.observes, holder.mend) == (unit, observes, mend)
    error = GpuHeldError(CARD, [holder])
    assert mend in str(error)
    assert (unit or "pid 9") in str(error)
    assert ("only observes" in str(error)) is observes
    assert "sessions" in Holder(1, "systemd", Path("/dev/dri/card3"), "init.scope").mend


class Systemd:
    """Whom a unit stops, stops holding; a start brings it back."""

    def __init__(self, host: GpuHost) -> None:
        self.host, self.log = host, list[str]()
        self.units = dict[str, int]()

    def runs(self, unit: str, pid: int, program: str, target: str) -> None:
        self.units[unit] = pid
        in_unit(self.host, pid, program, f"/system.slice/{unit}", [target])

    async def run(
        self, argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float = 10.0
    ) -> CompletedCommand:
        del stdin, timeout_s
        assert argv[0] == "systemctl"
        verb, unit = argv[1], argv[-1]
        self.log.append(f"{verb} {unit}")
        pid = self.units[unit]
        if verb == "stop":
            (self.host.proc / str(pid)).rename(self.host.proc / f"gone-{pid}")
        else:
            (self.host.proc / f"gone-{pid}").rename(self.host.proc / str(pid))
        return CompletedCommand(0, b"", b"")


@pytest.fixture
def systemd(host: GpuHost) -> Systemd:
    systemd = Systemd(host)
    systemd.runs(PERSISTENCED, 50, "nvidia-persiste", "/dev/nvidia2")
    return systemd


def observers(host: GpuHost, systemd: Systemd, *units: str) -> Observers:
    return Observers(host.store, units, run=systemd.run)


async def test_a_unit_that_may_be_stopped_is_stopped_for_a_preparation_and_started_again(
    host: GpuHost, systemd: Systemd
) -> None:
    await host.claim(CARD)
    shop = host.preparer(observers=observers(host, systemd, PERSISTENCED))
    await shop.examine([CARD])
    assert systemd.log == []
    await shop.make_ready(ENCLAVE, [CARD], CcMode.OFF)
    assert systemd.log == [f"stop {PERSISTENCED}", f"start {PERSISTENCED}"]
    await shop.start()
    assert len(systemd.log) == 2


async def test_it_is_started_again_after_a_failure_too(host: GpuHost, systemd: Systemd) -> None:
    host.kernel.dead.add(CARD)
    await host.claim(CARD)
    shop = host.preparer(observers=observers(host, systemd, PERSISTENCED))
    with pytest.raises(UnqualifiedError):
        await shop.make_ready(ENCLAVE, [CARD], CcMode.OFF)
    assert systemd.log[-1] == f"start {PERSISTENCED}"


@pytest.mark.parametrize("units", [(), ("dcgm.service",)])
async def test_no_other_unit_is_ever_stopped(
    host: GpuHost, systemd: Systemd, units: tuple[str, ...]
) -> None:
    await host.claim(CARD)
    shop = host.preparer(observers=observers(host, systemd, *units))
    with pytest.raises(GpuHeldError, match=f"systemctl stop {PERSISTENCED}"):
        await shop.make_ready(ENCLAVE, [CARD], CcMode.OFF)
    assert systemd.log == []


async def test_nor_is_one_stopped_in_vain_while_somebody_else_holds_the_gpu(
    host: GpuHost, systemd: Systemd
) -> None:
    host.hold(51, "python3", ["/dev/nvidia2"])
    await host.claim(CARD)
    shop = host.preparer(observers=observers(host, systemd, PERSISTENCED))
    with pytest.raises(GpuHeldError, match="python3"):
        await shop.make_ready(ENCLAVE, [CARD], CcMode.OFF)
    assert systemd.log == []


async def test_two_preparations_at_once_stop_it_once_for_both(
    host: GpuHost, systemd: Systemd
) -> None:
    watching = observers(host, systemd, PERSISTENCED)
    holder = Holder(50, "nvidia-persiste", Path("/dev/nvidia2"), PERSISTENCED, observes=True)
    async with watching.stopped([holder]):
        async with watching.stopped([holder]):
            pass
        async with watching.stopped([]):  # it must not come up while this one works
            assert systemd.log == [f"stop {PERSISTENCED}"]
        assert systemd.log == [f"stop {PERSISTENCED}"]
    assert systemd.log == [f"stop {PERSISTENCED}", f"start {PERSISTENCED}"]


async def test_what_was_stopped_is_started_after_a_crash(host: GpuHost, systemd: Systemd) -> None:
    await host.claim(CARD)

    def die() -> None:
        raise Died

    host.kernel.before = die

    class Killed(Observers):
        async def _start(self, units: list[str]) -> None:
            raise Died

    killed = Killed(host.store, (PERSISTENCED,), run=systemd.run)
    with pytest.raises((Died, BaseExceptionGroup)):
        await host.preparer(observers=killed).make_ready(ENCLAVE, [CARD], CcMode.OFF)
    assert systemd.log == [f"stop {PERSISTENCED}"]
    host.kernel.before = lambda: None
    await host.preparer(observers=observers(host, systemd)).start()  # no longer configured
    assert systemd.log == [f"stop {PERSISTENCED}", f"start {PERSISTENCED}"]


async def test_a_plan_is_refused_for_a_held_gpu_and_our_own_look_at_it_is_none(
    host: GpuHost,
) -> None:
    host.hold(60, "python3", ["/dev/nvidia2"])  # the agent's own, which is sent away

    @contextlib.asynccontextmanager
    async def released() -> AsyncIterator[None]:
        (host.proc / "60").rename(host.proc / "gone-60")
        yield
        (host.proc / "gone-60").rename(host.proc / "60")

    shop = host.preparer(released=released)
    await shop.examine([CARD])
    host.hold(61, "python3", ["/dev/nvidia2"])
    with pytest.raises(GpuHeldError, match="pid 61"):
        await shop.examine([CARD])
    assert host.kernel.log == []
