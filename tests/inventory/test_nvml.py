"""NVML through its own process: the shim's library, loaded by the real binding."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from agent.inventory.nvml.frames import FrameError, Open, length_of, pack, request_of, told_of
from agent.inventory.nvml.probe import NvmlProbe
from agent.inventory.nvml.process import CHILD
from agent.inventory.nvml.values import NvmlEvent, NvmlGpu, NvmlLook, NvmlSilence
from agent.model.gpu import CcMode, GpuProcess
from agent.model.ids import Bdf
from simulator.manual_clock import ManualClock
from simulator.nvml import Nvml, alive
from tests.fakes.gpus import BDF, OTHER

ONE, TWO = frozenset({BDF}), frozenset({BDF, OTHER})
EIGHT = TWO | {Bdf(f"0000:{bus:02x}:00.0") for bus in range(0x40, 0x46)}


class World:
    """A probe over a library, with a clock that a test moves, and the events that came."""

    def __init__(
        self,
        nvml: Nvml,
        *,
        look_s: float = 5.0,
        attach_s: float = 30.0,
        library: str | None = None,
    ) -> None:
        self.nvml = nvml
        self.clock = ManualClock()
        self.events: list[NvmlEvent] = []
        self._rang = asyncio.Event()
        self.probe = NvmlProbe(
            library or str(nvml.library),
            self.clock,
            on_event=self._keep,
            look_s=look_s,
            attach_s=attach_s,
        )

    def _keep(self, event: NvmlEvent) -> None:
        self.events.append(event)
        self._rang.set()

    async def until(self, count: int) -> list[NvmlEvent]:
        async with asyncio.timeout(10):
            while len(self.events) < count:
                self._rang.clear()
                await self._rang.wait()
        return self.events

    async def look(self, gpus: frozenset[Bdf] = ONE) -> NvmlLook:
        return await self.probe.look(gpus)

    async def gpu(self) -> NvmlGpu:
        look = await self.look()
        assert look.trouble is None
        return look.gpus[0]


Make = Callable[..., World]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[Make]:
    made: list[World] = []

    def make(*, old: bool = False, gpus: int = 1, **more: object) -> World:
        nvml = Nvml(tmp_path / str(len(made)), old=old)
        for bdf in sorted(EIGHT)[:gpus]:
            nvml.gpu(bdf)
        made.append(World(nvml, **more))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for one in made:
        await one.probe.close()
        assert one.probe.pid is None


async def test_everything_that_the_driver_tells_comes_through(world: Make):
    made = world()
    made.nvml.gpu(BDF, process=4711, volatile_corrected=3, remapped_rows="1 0 1 0", field_52=9)
    look = await made.look()
    assert (look.driver_version, look.cc_mode, look.trouble) == ("580.95.05", CcMode.OFF, None)
    assert look.gpus == (
        NvmlGpu(
            bdf=BDF,
            uuid="GPU-0",
            serial="1650000000001",
            module_id=7,
            name="NVIDIA H100 80GB HBM3",
            architecture="hopper",
            memory_mib=81559,
            temperature_c=33,
            power_w=71.25,
            utilization_percent=0,
            memory_used_mib=612,
            sm_clock_mhz=345,
            ecc={
                "enabled": True,
                "volatile": {"corrected": 3, "uncorrected": 0},
                "aggregate": {"corrected": 2, "uncorrected": 0},
                "sram_threshold_exceeded": False,
                "retired_pages_pending": None,
            },
            remapped_rows={
                "correctable": 1,
                "uncorrectable": 0,
                "pending": True,
                "failure": False,
            },
            nvlink={
                "links": 18,
                "active": 18,
                "errors": {"crc_flit": None, "crc_data": None, "replay": 9, "recovery": 0},
            },
            fabric={"state": "completed", "status": 0, "clique_id": 0, "health_mask": 0x1AA},
            processes=(GpuProcess(pid=4711, memory_mib=512),),
            clocks_event_reasons=1,
            mig=False,
            recovery=0,
        ),
    )


async def test_tensor_cores_are_told_from_the_second_sample_on_where_the_part_can(world: Make):
    made = world(gpus=3)
    busy, idle, older = sorted(EIGHT)[:3]
    made.nvml.gpu(busy, tensor=37.5)
    made.nvml.gpu(idle, tensor="nan")
    made.nvml.gpu(older, tensor=12.5, gpm=0)
    three = frozenset({busy, idle, older})
    look = await made.look(three)
    assert [gpu.tensor_percent for gpu in look.gpus] == [None, None, None]
    async with asyncio.timeout(30):
        while (look := await made.look(three)).gpus[0].tensor_percent is None:
            await asyncio.sleep(0.05)
    assert [gpu.tensor_percent for gpu in look.gpus] == [37.5, None, None]
    assert [gpu.temperature_c for gpu in look.gpus] == [33, 33, 33]
    assert (look.trouble, look.silent) == (None, ())


async def test_a_gpu_whose_tensor_cores_cannot_be_sampled_is_as_good_as_before(world: Make):
    made = world()
    refusals = (("QueryDeviceSupport", 3), ("SampleAlloc", 20), ("SampleGet", 999))
    for function, code in refusals:  # each is asked anew, since none was answered
        made.nvml.function(f"nvmlGpm{function}", code)
        gpu = await made.gpu()
        assert (gpu.temperature_c, gpu.tensor_percent, gpu.mute) == (33, None, None)
        assert not gpu.lost
        made.nvml.function(f"nvmlGpm{function}", None)
    made.nvml.function("nvmlGpmSampleGet", 15)
    assert (await made.gpu()).lost, "it fell off the bus while it was sampled"


async def test_a_sample_that_hangs_takes_out_its_gpu_and_no_other(world: Make):
    made = world(gpus=2, look_s=1.5)
    made.nvml.gpu(OTHER, hang="gpm_sample")
    look = await made.look(TWO)
    assert ([gpu.bdf for gpu in look.gpus], look.silent) == ([BDF], (NvmlSilence(bdf=OTHER),))


@pytest.mark.parametrize("count", [0, 8])
async def test_no_gpu_and_eight_gpus_are_seen(world: Make, count: int):
    look = await world(gpus=count).look(EIGHT)
    assert len(look.gpus) == count
    assert (look.trouble, look.silent) == (None, ())


async def test_an_older_driver_leaves_unknown_what_it_does_not_have(world: Make):
    gpu = await world(old=True).gpu()
    assert (gpu.uuid, gpu.temperature_c, gpu.remapped_rows is not None) == ("GPU-0", 33, True)
    assert gpu.ecc is not None
    assert gpu.ecc["sram_threshold_exceeded"] is None
    for name in ("module_id", "fabric", "processes", "clocks_event_reasons", "recovery"):
        assert getattr(gpu, name) is None


async def test_what_a_board_does_not_support_is_unknown(world: Make):
    made = world()
    for name in ("serial", "ecc", "remapped_rows", "nvlinks", "fabric", "power_mw", "field_230"):
        made.nvml.gpu(BDF, **{name: None})
    gpu = await made.gpu()
    for name in ("serial", "ecc", "remapped_rows", "nvlink", "fabric", "power_w", "recovery"):
        assert getattr(gpu, name) is None
    assert not gpu.lost


@pytest.mark.parametrize(
    ("cc", "mode"),
    [
        ("0 0 0", CcMode.OFF),
        ("1 0 0", CcMode.ON),
        ("1 1 0", CcMode.DEVTOOLS),
        ("1 0 1", CcMode.PPCIE),
        ("0 0 1", CcMode.PPCIE),
    ],
)
async def test_the_confidential_mode_is_told(world: Make, cc: str, mode: CcMode):
    made = world()
    made.nvml.driver(cc=cc)
    assert (await made.look()).cc_mode is mode


async def test_an_older_drivers_confidential_mode_is_told_by_its_older_call(world: Make):
    made = world(old=True)
    made.nvml.driver(cc="1 1 0")
    assert (await made.look()).cc_mode is CcMode.DEVTOOLS


async def test_mig_and_a_recovery_action_that_nobody_knows_yet_come_through(world: Make):
    made = world()
    made.nvml.gpu(BDF, mig=1, field_230=99)
    gpu = await made.gpu()
    assert (gpu.mig, gpu.recovery) == (True, 99)


async def test_a_gpu_lost_mid_run_is_told_and_the_others_are_still_seen(world: Make):
    made = world(gpus=2)
    assert not any(gpu.lost for gpu in (await made.look(TWO)).gpus)
    made.nvml.gpu(BDF, error=15)
    first, second = (await made.look(TWO)).gpus
    assert (first.bdf, first.lost, first.temperature_c) == (BDF, True, None)
    assert (second.lost, second.temperature_c) == (False, 33)


async def test_a_gpu_that_needs_a_reset_says_so(world: Make):
    made = world()
    made.nvml.gpu(BDF, error=16)
    assert (await made.gpu()).reset_required


async def test_events_are_pushed_with_whose_they_are(world: Make):
    made = world(gpus=2)
    await made.look(TWO)
    made.nvml.event(OTHER, 0x8, 79)
    made.nvml.event(BDF, 0x4000, 1)
    made.nvml.event(BDF, 0x8000, 2)
    assert await made.until(3) == [
        NvmlEvent(kind="xid", bdf=OTHER, data=79),
        NvmlEvent(kind="unavailable", bdf=BDF, data=1),
        NvmlEvent(kind="recovery_action", bdf=BDF, data=2),
    ]
    assert len((await made.look(TWO)).gpus) == 2


async def test_an_event_that_a_gpu_does_not_support_is_not_registered(world: Make):
    made = world()
    made.nvml.gpu(BDF, event_types=0x8)
    await made.look()
    made.nvml.event(BDF, 0x4000, 1)
    made.nvml.event(BDF, 0x8, 31)
    assert await made.until(1) == [NvmlEvent(kind="xid", bdf=BDF, data=31)]


async def test_a_call_that_hangs_is_killed_within_its_deadline_and_tried_again(world: Make):
    made = world(look_s=0.3)
    await made.look()
    pid = made.probe.pid
    assert pid is not None
    made.nvml.function("nvmlDeviceGetMemoryInfo", "hang")
    began = time.monotonic()
    look = await made.look()
    assert time.monotonic() - began < 20  # it would hang for ever
    assert look.trouble is not None
    assert (look.trouble.code, look.trouble.expected, look.gpus) == ("nvml_hung", False, ())
    assert not alive(pid)

    made.nvml.function("nvmlDeviceGetMemoryInfo", None)
    assert (await made.look()).trouble == look.trouble  # not asked before the backoff has passed
    assert made.probe.pid is None
    made.clock.advance(6)
    assert (await made.look()).trouble is None


async def test_a_call_that_hangs_takes_out_its_gpu_and_no_other(world: Make):
    made = world(gpus=8, look_s=0.3)
    assert len((await made.look(EIGHT)).gpus) == 8
    made.nvml.gpu(OTHER, hang="temperature_c")
    for _ in range(2):  # when it hangs, and while it rests: then nobody waits for it
        look = await made.look(EIGHT)
        assert {gpu.bdf for gpu in look.gpus} == EIGHT - {OTHER}
        assert all(gpu.temperature_c == 33 for gpu in look.gpus)
        assert look.silent == (NvmlSilence(bdf=OTHER),)
        assert (look.trouble, look.driver_version) == (None, "580.95.05")
    made.nvml.gpu(OTHER, hang=None)
    made.clock.advance(6)
    look = await made.look(EIGHT)
    assert ({gpu.bdf for gpu in look.gpus}, look.silent) == (EIGHT, ())


async def test_a_gpu_that_hangs_when_it_is_attached_is_known_from_the_first_look_on(world: Make):
    made = world(gpus=3, attach_s=1.0)
    made.nvml.gpu(OTHER, hang="handle")
    look = await made.look(frozenset(sorted(EIGHT)[:3]))
    assert [silent.bdf for silent in look.silent] == [OTHER]
    assert len(look.gpus) == 2


async def test_a_gpu_that_hangs_is_tried_less_and_less_often(world: Make):
    made = world(gpus=2, look_s=0.2)
    await made.look(TWO)
    made.nvml.gpu(OTHER, hang="temperature_c")
    await made.look(TWO)
    made.clock.advance(6)
    await made.look(TWO)  # tried again, in vain: ten seconds by now
    await made.look(TWO)
    pid = made.probe.pid
    assert pid is not None
    made.clock.advance(6)
    assert (await made.look(TWO)).silent == (NvmlSilence(bdf=OTHER),)
    assert made.probe.pid == pid  # a call that hangs would have taken it along


async def test_when_all_hang_not_all_are_waited_for(world: Make):
    made = world(gpus=8, look_s=0.3)
    await made.look(EIGHT)
    made.nvml.function("nvmlDeviceGetTemperature", "hang")
    began = time.monotonic()
    look = await made.look(EIGHT)
    assert time.monotonic() - began < 8 * 0.3 + 5
    assert look.trouble is not None
    assert (look.trouble.code, look.gpus) == ("nvml_hung", ())
    assert {silent.bdf for silent in look.silent} == EIGHT


@pytest.mark.parametrize("error", [4, 8, 15, 999])
async def test_a_gpu_that_is_refused_at_its_handle_is_told_with_the_error(world: Make, error: int):
    made = world(gpus=2)
    made.nvml.gpu(OTHER, handle=error)
    look = await made.look(TWO)
    assert look.silent == (NvmlSilence(bdf=OTHER, error=error),)
    assert ([gpu.bdf for gpu in look.gpus], look.trouble) == ([BDF], None)
    made.nvml.gpu(OTHER, handle=None)
    assert len((await made.look(TWO)).gpus) == 1  # to try it anew may take the driver seconds
    made.clock.advance(6)
    assert len((await made.look(TWO)).gpus) == 2


async def test_a_gpu_that_nvml_does_not_know_is_told_when_it_was_loaded_anew_for_it(world: Make):
    made = world()
    assert [(await made.look(TWO)).silent for _ in range(2)] == [(), ()]
    pid = made.probe.pid
    made.clock.advance(6)
    assert (await made.look(TWO)).silent == (NvmlSilence(bdf=OTHER, error=6),)
    assert made.probe.pid != pid  # what is loaded learns of no GPU that comes later
    made.nvml.gpu(OTHER)
    made.clock.advance(11)
    look = await made.look(TWO)
    assert (len(look.gpus), look.silent) == (2, ())


async def test_a_gpu_of_which_nothing_can_be_read_says_with_which_error(world: Make):
    made = world()
    made.nvml.gpu(BDF, error=999)
    assert (await made.gpu()).mute == 999
    made.nvml.gpu(BDF, error=None)
    assert (await made.gpu()).mute is None


async def test_a_driver_that_crashes_takes_only_its_own_process_along(world: Make):
    made = world()
    made.nvml.function("nvmlDeviceGetTemperature", "crash")
    look = await made.look()
    assert look.trouble is not None
    assert look.trouble.code == "nvml_crashed"
    assert "SIGSEGV" in look.trouble.detail


async def test_the_backoff_grows_and_ends_when_the_driver_has_other_gpus(world: Make):
    made = world()
    made.nvml.function("nvmlInitWithFlags", 999)
    assert (await made.look()).trouble is not None
    made.clock.advance(6)
    assert (await made.look()).trouble is not None  # tried again, failed again
    made.nvml.function("nvmlInitWithFlags", None)
    made.clock.advance(6)
    assert (await made.look()).trouble is not None  # ten seconds by now
    assert (await made.look(frozenset({BDF, OTHER}))).trouble is None


async def test_no_driver_no_permission_and_no_library_are_told_apart(world: Make):
    made = world()
    for number, code in {9: "nvml_no_driver", 4: "nvml_forbidden", 999: "nvml_error_999"}.items():
        made.nvml.function("nvmlInitWithFlags", number)
        trouble = (await made.look()).trouble
        assert trouble is not None
        assert (trouble.code, trouble.expected) == (code, False)
        made.clock.advance(100)

    trouble = (await world(library="/nonexistent/libnvidia-ml.so.1").look()).trouble
    assert trouble is not None
    assert trouble.code == "nvml_no_library"
    assert "/nonexistent" in trouble.detail


async def test_there_is_no_process_while_the_driver_has_no_gpu(world: Make):
    made = world()
    await made.look()
    pid = made.probe.pid
    assert pid is not None
    assert await made.look(frozenset()) == NvmlLook()
    assert made.probe.pid is None
    assert not alive(pid)


async def test_a_gpu_that_the_driver_got_later_is_seen_by_a_new_process(world: Make):
    made = world()
    await made.look()
    first = made.probe.pid
    made.nvml.gpu(OTHER)
    assert len((await made.look(frozenset({BDF, OTHER}))).gpus) == 2
    assert made.probe.pid != first


async def test_released_means_that_the_process_has_ended_and_none_is_started(world: Make):
    made = world()
    await made.look()
    pid = made.probe.pid
    assert pid is not None
    async with made.probe.released(), made.probe.released():
        assert not alive(pid)
        trouble = (await made.look()).trouble
        assert trouble is not None
        assert trouble.expected
        assert made.probe.pid is None
    assert (await made.look()).trouble is None


async def test_a_release_cuts_off_a_look_that_hangs(world: Make):
    made = world(look_s=60.0)
    await made.look()
    pid = made.probe.pid
    assert pid is not None
    made.nvml.function("nvmlDeviceGetMemoryInfo", "hang")
    looking = asyncio.create_task(made.look())
    await asyncio.sleep(0.1)
    async with made.probe.released():
        assert not alive(pid)
    trouble = (await looking).trouble
    assert trouble is not None
    assert trouble.expected
    made.nvml.function("nvmlDeviceGetMemoryInfo", None)
    assert (await made.look()).trouble is None  # no backoff: nothing was wrong


async def test_a_release_while_the_process_starts_leaves_none(world: Make):
    made = world()
    looking = asyncio.create_task(made.look())
    await asyncio.sleep(0)
    async with made.probe.released():
        assert made.probe.pid is None
    await looking
    assert made.probe.pid is None


async def test_a_release_that_is_cancelled_does_not_keep_nvml_away(world: Make):
    made = world(look_s=60.0)

    async def hold() -> None:
        async with made.probe.released():
            await asyncio.sleep(60)

    holding = asyncio.create_task(hold())
    await asyncio.sleep(0.05)
    holding.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await holding
    assert (await made.look()).trouble is None


async def test_a_cancelled_look_does_not_answer_the_next_question(world: Make):
    made = world()
    await made.look()
    made.nvml.function("nvmlDeviceGetMemoryInfo", "hang")
    looking = asyncio.create_task(made.look())
    await asyncio.sleep(0.1)
    looking.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await looking
    made.nvml.function("nvmlDeviceGetMemoryInfo", None)
    made.nvml.gpu(BDF, temperature_c=55)
    assert (await made.gpu()).temperature_c == 55


def test_the_process_ends_with_the_agent_even_while_a_call_hangs(tmp_path: Path):
    nvml = Nvml(tmp_path)
    nvml.function("nvmlInitWithFlags", "hang")
    child = subprocess.Popen(
        [*CHILD, str(nvml.library)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdin is not None
    child.stdin.write(pack(Open()))
    child.stdin.flush()
    time.sleep(0.3)
    assert child.poll() is None
    child.stdin.close()
    assert child.wait(timeout=10) == 0
    assert child.stdout is not None
    child.stdout.close()


def test_the_binding_is_loaded_in_the_process_alone():
    code = "import sys; import agent.inventory.nvml.probe; sys.exit('pynvml' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


async def test_a_process_that_writes_no_frames_is_a_crashed_one(tmp_path: Path):
    clock = ManualClock()
    argv = ["/bin/sh", "-c", "printf 'hello, this is no frame at all'; exec sleep 60"]
    probe = NvmlProbe("x", clock, on_event=lambda _: None, command=argv)
    trouble = (await probe.look(ONE)).trouble
    assert trouble is not None
    assert trouble.code == "nvml_crashed"
    await probe.close()


@pytest.mark.parametrize("body", [b"", b"\xff", b"\x81\xa4type\xa4Nope", os.urandom(40)])
def test_what_is_no_frame_is_refused(body: bytes):
    for read in (request_of, told_of):
        with pytest.raises(FrameError):
            read(body)


def test_a_frame_may_not_be_longer_than_it_can_be():
    with pytest.raises(FrameError):
        length_of(b"\xff\xff\xff\xff")
