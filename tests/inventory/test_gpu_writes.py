"""The real writer, the real tool as a program, and a kernel that does not return."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.host.attributes import AttributeStuckError, AttributeWriteError, write_attribute
from agent.inventory.port import unsigned
from agent.inventory.preparation.device_ops import DeviceOps
from agent.inventory.preparation.errors import ModeError, StuckError, UnqualifiedError
from agent.inventory.preparation.modes import ModeTool
from agent.inventory.preparation.recovery import Recovery
from agent.model.gpu import CcMode
from agent.model.ids import Bdf
from simulator.manual_clock import ManualClock
from simulator.memory_store import MemoryStore
from simulator.pci_kernel import PciKernel, install_tool
from simulator.pci_pipes import served
from simulator.sysfs_tree import HGX_BUSES, pcie_boards

CHECKOUT = Path(__file__).resolve().parents[2]
CARD = Bdf(f"0000:{HGX_BUSES[0]:02x}:00.0")


@pytest.fixture
def kernel(tmp_path: Path) -> PciKernel:
    tree = pcie_boards(tmp_path / "sys")
    tree.bind(CARD, "nvidia")
    (tmp_path / "proc").mkdir()
    return PciKernel(tree)


def bench_of(kernel: PciKernel, **more: float) -> DeviceOps:
    root = kernel.tree.root
    settings = {"write_deadline_s": 5.0, "budget_s": 5.0, "look_every_s": 0.01} | more
    return DeviceOps(root, root.parent / "proc", **settings)


async def test_a_group_is_bound_reset_and_given_back_by_real_writes(kernel: PciKernel) -> None:
    kernel.reset_s = 0.2
    device_ops = bench_of(kernel)
    with served(kernel):
        await device_ops.give_to_vfio(CARD)
        assert await device_ops.is_with_vfio(CARD)
        began = time.monotonic()
        await device_ops.reset(CARD)
        await device_ops.prove_sound(CARD)
        assert time.monotonic() - began < 20
        await device_ops.give_to_host(CARD)
    assert kernel.drivers()[CARD] == "nvidia"
    assert kernel.log[-1].startswith("drivers_probe")


async def test_a_card_is_taken_off_the_bus_and_found_again_by_real_writes(
    kernel: PciKernel,
) -> None:
    clock = ManualClock()
    recovery = Recovery(
        MemoryStore(clock.now),
        clock,
        kernel.tree.root,
        expecting=lambda _: contextlib.nullcontext(),
    )
    take_off, put_back = kernel.tree.take_off, kernel.tree.put_back

    def slowly(work: Callable[..., None]) -> Callable[..., None]:
        def done(*args: object) -> None:
            time.sleep(0.2)
            work(*args)

        return done

    kernel.tree.take_off, kernel.tree.put_back = slowly(take_off), slowly(put_back)  # type: ignore[method-assign]
    with served(kernel):
        await bench_of(kernel).give_to_vfio(CARD)
        plan = await recovery.plan(CARD)
        assert await recovery.carry_out(plan, unsigned) == ()
        assert kernel.log[-1] == f"rescan {plan.port}"  # which it has waited for
        assert (kernel.tree.devices / CARD / "vendor").exists()
    assert kernel.drivers()[CARD] is None
    assert (kernel.tree.root / "bus/pci/drivers_autoprobe").read_text() == "1\n"


async def test_an_unbind_that_hangs_holds_neither_the_loop_nor_anything_else(
    kernel: PciKernel,
) -> None:
    beats = 0

    async def beat() -> None:
        nonlocal beats
        while True:
            await asyncio.sleep(0.01)
            beats += 1

    liveness = asyncio.create_task(beat())
    with served(kernel, "nvidia/unbind"):
        with pytest.raises(StuckError, match="does not return"):
            await bench_of(kernel, write_deadline_s=0.5).give_to_vfio(CARD)
    liveness.cancel()
    assert beats > 15
    assert kernel.drivers()[CARD] == "nvidia"


async def test_a_cancelled_write_comes_down_at_once(kernel: PciKernel) -> None:
    with served(kernel, "nvidia/unbind"):
        task = asyncio.create_task(bench_of(kernel, write_deadline_s=60.0).give_to_vfio(CARD))
        await asyncio.sleep(0.3)
        began = time.monotonic()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()
    assert time.monotonic() - began < 10


async def test_a_reset_that_hangs_is_a_gpu_that_does_not_qualify(kernel: PciKernel) -> None:
    with served(kernel, f"{CARD}/reset"), pytest.raises(UnqualifiedError, match="cannot be reset"):
        await bench_of(kernel, budget_s=0.3).reset(CARD)


def test_an_agent_with_a_stuck_write_still_ends(tmp_path: Path) -> None:
    """The write's process outlives it, and holds nothing of it."""
    pipe, lock = tmp_path / "unbind", tmp_path / "lock"
    os.mkfifo(pipe)
    code = f"""
import asyncio
from pathlib import Path
from agent.host.attributes import write_attribute
from agent.host.files import lock_exclusive

async def main():
    held = lock_exclusive(Path({str(lock)!r}))
    task = asyncio.create_task(write_attribute(Path({str(pipe)!r}), "x", deadline_s=600))
    await asyncio.sleep(0.3)
    print("stuck", flush=True)
    import os
    os._exit(3)  # as if killed

asyncio.run(main())
"""
    began = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, timeout=20, check=False
    )
    assert (ended.returncode, ended.stdout) == (3, b"stuck\n"), ended.stderr
    assert time.monotonic() - began < 15
    from agent.host.files import lock_exclusive

    lock_exclusive(lock).close()  # nobody has it
    with pipe.open("rb") as reader:  # the orphan is let go
        assert reader.read() == b"x"


async def test_what_the_kernel_refuses_and_what_is_not_there_are_told_apart_from_a_hang(
    tmp_path: Path,
) -> None:
    with pytest.raises(AttributeWriteError, match="No such file") as missing:
        await write_attribute(tmp_path / "none", "x", deadline_s=5)
    assert not isinstance(missing.value, AttributeStuckError)
    assert not (tmp_path / "none").exists()
    with pytest.raises(AttributeWriteError, match="No space left"):
        await write_attribute(Path("/dev/full"), "x", deadline_s=5)
    plain = tmp_path / "attribute"
    plain.write_text("before")
    await write_attribute(plain, "after,\n", deadline_s=5)
    assert plain.read_text() == "after,\n"


async def test_the_operators_tool_is_found_on_the_path_and_asked_for_one_full_bdf(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    off = {"cc": "off", "ppcie": "off", "cc_next": "off", "ppcie_next": "off"}
    tool_file = install_tool(tmp_path, {CARD: off})
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    tool = ModeTool("nvidia_gpu_tools.py")
    both = ("cc", "ppcie")
    assert (await tool.query(CARD, kinds=both)).settled is CcMode.OFF
    await tool.set(CARD, CcMode.PPCIE, kinds=both)
    assert (await tool.query(CARD, kinds=both)).settled is CcMode.PPCIE
    await tool.set(CARD, CcMode.ON, kinds=both)
    assert (await tool.query(CARD, kinds=both)).settled is CcMode.ON
    calls = tool_file.with_name("gpu_modes.log").read_text().splitlines()
    assert all(line.startswith(f"--devices {CARD} ") for line in calls)
    with pytest.raises(ModeError, match="No such device"):
        await tool.query(Bdf("0000:99:00.0"), kinds=("cc",))
