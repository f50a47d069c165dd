"""The kernel's sentences about a GPU, and its log."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

import pytest

from agent.host.kernel_log import KernelLog
from agent.host.units import LendError
from agent.inventory.kernel_messages import finding_of, overheard, parse
from agent.model.gpu import HealthAction, Severity
from agent.model.ids import Bdf
from tests.fakes.gpus import BDF, OTHER, function
from tests.fakes.kmsg import writing

PORT = Bdf("0000:17:01.0")


def record(text: str, level: int = 4) -> bytes:
    return f"{level},41,1725,-;{text}\n SUBSYSTEM=pci\n DEVICE=+pci:0000:18:00.0\n".encode()


def code(text: str, level: int = 4) -> str | None:
    message = parse(record(text, level))
    assert message is not None
    finding = finding_of(message)
    return finding.code if finding else None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pci 0000:18:00.0: not ready 65535ms after FLR; giving up", "kernel_not_ready"),
        ("pci 0000:18:00.0: not ready 1023ms after FLR; waiting", None),
        (
            "vfio-pci 0000:18:00.0: Unable to change power state from D3cold to D0, "
            "device inaccessible",
            "kernel_inaccessible",
        ),
        (
            "vfio-pci 0000:18:00.0: can't change power state from D3cold to D0 "
            "(config space inaccessible)",
            "kernel_inaccessible",
        ),
        ("pcieport 0000:17:01.0: DPC: containment event, status:0x1f01", "kernel_contained"),
        ("pcieport 0000:17:01.0: AER: device recovery failed", "kernel_recovery_failed"),
        ("pcieport 0000:17:01.0: pciehp: Slot(3): Link Down", "kernel_link_down"),
        (
            "vfio-pci 0000:18:00.0: vfio_bar_restore: reset recovery - restoring BARs",
            "kernel_bars_restored",
        ),
        ("vfio-pci 0000:18:00.0: enabling device (0140 -> 0142)", None),
    ],
)
def test_what_the_kernel_says_is_understood(text: str, expected: str | None) -> None:
    assert code(text) == expected


def test_an_error_that_is_not_known_is_told_as_it_is_and_less_is_not() -> None:
    text = "vfio-pci 0000:18:00.0: something is very wrong"
    assert (code(text, level=3), code(text, level=4)) == ("kernel_error", None)
    message = parse(record(text, level=3))
    assert message is not None
    finding = finding_of(message)
    assert finding is not None
    assert (finding.severity, finding.action) == (Severity.WARNING, HealthAction.WATCH)
    assert finding.detail == "the kernel says: something is very wrong"
    # what AER counts is told by its counters
    assert code("pcieport 0000:17:01.0: AER: Uncorrectable (Fatal) error", level=3) is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"garbage",
        b"\xff\xfe;",
        b"6,1,2,-;usb 1-1: new device",
        b"x,1,2,-;pci 0000:18:00.0: a",
        b"12,1,2,-;pci 0000:18:00.0: DPC: containment event",  # written by a program
        record("guest says pci 0000:18:00.0: DPC: containment event"),
        record("guest says NVRM: Xid (PCI:0000:18:00): 79, GPU has fallen off the bus."),
    ],
)
def test_what_is_not_said_of_a_pci_device_by_the_kernel_is_nothing(data: bytes) -> None:
    assert overheard(data, [function(BDF)]) == ()


def test_a_port_is_above_all_that_is_below_it() -> None:
    functions = [function(BDF, ports=(Bdf("0000:16:00.0"), PORT)), function(OTHER)]

    def of(bdf: str) -> tuple[Bdf, ...]:
        told = record(f"pcieport {bdf}: DPC: containment event")
        return tuple(one for one, _ in overheard(told, functions))

    assert of(PORT) == of("0000:16:00.0") == of(BDF) == (BDF,)
    assert of("0000:99:00.0") == ()


async def test_records_are_told_one_by_one_until_it_is_closed(tmp_path: Path) -> None:
    heard: list[bytes] = []
    path = tmp_path / "kmsg"
    os.mkfifo(path)
    log = KernelLog(heard.append, path)
    await log.start()
    with writing(path) as write:
        async with asyncio.timeout(5):
            for number in range(100):
                write(b"%d" % number)
                while number - len(heard) > 5:  # the pipe holds sixteen
                    await asyncio.sleep(0.001)
            while len(heard) < 100:
                await asyncio.sleep(0.001)
        assert heard == [b"%d" % number for number in range(100)]
        log.close()
        log.close()
        with pytest.raises(BrokenPipeError):
            write(b"nobody")


async def test_a_log_that_may_not_be_read_is_told_once_and_is_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        log = KernelLog(lambda _: None, tmp_path / "none")
        await log.start()
        log.close()
    assert [one.getMessage() for one in caplog.records] == ["kernel log cannot be read"]


async def test_a_log_that_is_closed_to_this_unit_is_opened_by_another(tmp_path: Path) -> None:
    asked: list[tuple[str, ...]] = []
    heard: list[bytes] = []
    os.mkfifo(tmp_path / "kmsg")

    async def lend(*words: str) -> int:
        asked.append(words)
        return os.open(tmp_path / "kmsg", os.O_RDONLY | os.O_NONBLOCK)

    log = KernelLog(heard.append, tmp_path / "closed", lend)
    await log.start()
    assert asked == [("read", str(tmp_path / "closed"))]
    with writing(tmp_path / "kmsg") as write:
        write(b"one")
        async with asyncio.timeout(5):
            while not heard:
                await asyncio.sleep(0.001)
    log.close()
    assert heard == [b"one"]


async def test_a_log_that_nobody_can_open_is_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def lend(*_: str) -> int:
        raise LendError("Operation not permitted")

    with caplog.at_level(logging.INFO):
        log = KernelLog(lambda _: None, tmp_path / "closed", lend)
        await log.start()
        log.close()
    assert [one.getMessage() for one in caplog.records] == ["kernel log cannot be read"]
