"""The simulated processor against a process that has a guest's port, and a guest at its worst."""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from functools import cache
from pathlib import Path

import pytest
from cryptography import x509

from agent.attestation.simulated_chain import SimulatedChain, make_chain
from agent.attestation.simulated_launch import LaunchUnknownError, launch_of
from agent.attestation.simulated_processor import GAP_S, SimulatedProcessor
from agent.attestation.simulated_wire import HEADER_BYTES, Command, WireError, parse_header
from agent.host.process import identify
from agent.model.enclave import ProcessIdentity
from agent.model.ids import EnclaveId
from agent.model.measurement import MeasuredLaunch
from tests.fakes.psp_guest import Guest, running
from tests.fakes.snp_documents import check_chain, check_report

REPORT, CHAIN = "53505350 0101 4000", "53505350 0102 0000"
DATA = bytes(range(64))
CMDLINE = "root=/dev/mapper/root x=1,2"


@cache
def chain() -> SimulatedChain:
    return make_chain(dt.datetime(2026, 1, 1, tzinfo=dt.UTC), rsa_bits=2048)


def digest(launch: MeasuredLaunch) -> bytes:
    """In the place of sev-snp-measure: 48 bytes over all that it is over."""
    parts = [path.read_bytes() for path in (launch.firmware, launch.kernel, launch.initrd)]
    return hashlib.sha384(repr((launch.vcpus, launch.cmdline, parts)).encode()).digest()


def expected(initrd: bytes = b"the initrd", vcpus: int = 2) -> bytes:
    parts = [b"the firmware", b"the kernel", initrd]
    return hashlib.sha384(repr((vcpus, CMDLINE, parts)).encode()).digest()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as held:
        yield held


def a_guest(
    stack: ExitStack, home: Path, *, without: str = "", more: tuple[str, ...] = ()
) -> Guest:
    """A process with its files inherited, as the agent starts QEMU."""
    options, fds = ["-smp", "2", "-append", CMDLINE], []
    for option, name in (("-bios", "firmware"), ("-kernel", "kernel"), ("-initrd", "initrd")):
        (home / name).write_text(f"the {name}")
        fd = os.open(home / name, os.O_RDONLY)
        stack.callback(os.close, fd)
        fds.append(fd)
        if option != without:
            options += [option, f"/proc/self/fd/{fd}"]
    return stack.enter_context(running(home / "sim-psp", [*options, *more], fds))


@asynccontextmanager
async def served(guest: Guest, process: ProcessIdentity | None = None) -> AsyncIterator[None]:
    processor = SimulatedProcessor(chain(), digest)
    task = asyncio.create_task(
        processor.serve(EnclaveId("aaaaaaa2"), process or guest.identity, guest.socket)
    )
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def ask(guest: Guest, header: str = REPORT, payload: bytes = DATA) -> tuple[int, bytes]:
    return await asyncio.to_thread(guest.ask, header, payload)


async def test_a_guest_gets_a_report_over_its_data_and_over_what_its_process_was_given(
    short_dir: Path, stack: ExitStack
) -> None:
    guest = a_guest(stack, short_dir)
    # Its names may mean something else by now; its open files do not.
    (short_dir / "kernel").rename(short_dir / "gone")
    (short_dir / "kernel").write_text("another kernel")
    async with served(guest):
        status, report = await ask(guest)
    assert status == 0
    check_report(report, chain().vcek)
    assert report[0x50:0x90] == DATA
    assert report[0x90:0xC0] == expected()


async def test_a_program_in_between_that_exchanges_the_initrd_is_seen(
    short_dir: Path, stack: ExitStack
) -> None:
    other = short_dir / "other"
    other.write_text("another initrd")
    guest = a_guest(stack, short_dir, more=("--initrd", str(other), "-smp", "cpus=4"))
    async with served(guest):
        _, report = await ask(guest)
    assert report[0x90:0xC0] == expected(b"another initrd", vcpus=4)


async def test_a_guest_gets_the_certificates_as_a_table(short_dir: Path, stack: ExitStack) -> None:
    guest = a_guest(stack, short_dir)
    async with served(guest):
        status, table = await ask(guest, CHAIN, b"")
    assert status == 0
    found = []
    for number, guid in enumerate(("63da758d", "4ab7b379", "c0b406a4")):
        entry = table[number * 24 : number * 24 + 24]
        assert entry[:4].hex() == guid
        offset, size = (int.from_bytes(entry[at : at + 4], "little") for at in (16, 20))
        found.append(x509.load_der_x509_certificate(table[offset : offset + size]))
    assert table[72:96] == bytes(24)
    check_chain(*found)
    assert found[0] == chain().vcek


async def test_another_agent_goes_on_where_one_was_killed(
    short_dir: Path, stack: ExitStack
) -> None:
    guest = a_guest(stack, short_dir)
    async with served(guest):
        _, first = await ask(guest)
    assert await asyncio.to_thread(guest.happenings, 2) == b"+-"
    async with served(guest):
        _, second = await ask(guest)
    assert first[0x90:0xC0] == second[0x90:0xC0]
    assert first[0x140:0x160] == second[0x140:0x160]  # the report id


@pytest.mark.parametrize(
    "noise",
    [
        b"\0" * 4096,
        b"GET / HTTP/1.1\r\n\r\n",
        bytes.fromhex("53505350 0201 4000") + DATA,  # another version
        bytes.fromhex("53505350 0103 4000") + DATA,  # no such command
        bytes.fromhex("53505350 0101 ffff") + DATA,  # a length that is not the command's
        bytes.fromhex("53505350 0102 4000") + DATA,
    ],
    ids=["zeros", "http", "version", "command", "length", "payload"],
)
async def test_what_is_no_request_is_hung_up_on_and_the_next_one_answered(
    noise: bytes, short_dir: Path, stack: ExitStack
) -> None:
    guest = a_guest(stack, short_dir)
    async with served(guest):
        assert await asyncio.to_thread(guest.happenings, 1) == b"+"
        guest.send(noise)
        assert await asyncio.to_thread(guest.happenings, 2) == b"-+"
        assert guest.receive(1, timeout_s=0) == b""
        status, _ = await ask(guest)
    assert status == 0


async def test_half_a_request_is_not_waited_for(short_dir: Path, stack: ExitStack) -> None:
    guest = a_guest(stack, short_dir)
    async with served(guest):
        assert await asyncio.to_thread(guest.happenings, 1) == b"+"
        guest.send(bytes.fromhex(REPORT) + DATA[:40])
        assert await asyncio.to_thread(guest.happenings, 2) == b"-+"
        status, _ = await ask(guest)
    assert status == 0


async def test_a_guest_that_floods_is_answered_at_the_agents_pace(
    short_dir: Path, stack: ExitStack
) -> None:
    guest = a_guest(stack, short_dir)
    answer_bytes = HEADER_BYTES + 1184
    async with served(guest):
        await ask(guest)
        loop = asyncio.get_running_loop()
        begin = loop.time()
        guest.send((bytes.fromhex(REPORT) + DATA) * 500)
        got = await asyncio.to_thread(guest.receive, 20 * answer_bytes)
        took = loop.time() - begin
    assert len(got) == 20 * answer_bytes
    assert took >= 18 * GAP_S


async def test_another_process_that_listens_in_its_place_is_told_nothing(
    short_dir: Path, stack: ExitStack
) -> None:
    guest = a_guest(stack, short_dir)
    own = identify(os.getpid())
    async with served(guest, own):
        assert await asyncio.to_thread(guest.happenings, 2) == b"+-"
        guest.send(bytes.fromhex(REPORT) + DATA)
        assert await asyncio.to_thread(guest.receive, 1, 0.3) == b""


async def test_a_launch_that_cannot_be_measured_gets_no_report(
    short_dir: Path, stack: ExitStack
) -> None:
    guest = a_guest(stack, short_dir, without="-bios")
    async with served(guest):
        assert await ask(guest) == (1, b"")
        assert (await ask(guest, CHAIN, b""))[0] == 0


@pytest.mark.parametrize("option", ["-bios", "-kernel", "-initrd"])
def test_what_a_process_does_not_tell_is_named(
    option: str, short_dir: Path, stack: ExitStack
) -> None:
    guest = a_guest(stack, short_dir, without=option)
    with pytest.raises(LaunchUnknownError, match=f"it has no {option}"):
        launch_of(guest.identity.pid)


def test_a_topology_of_processors_is_not_guessed_at(short_dir: Path, stack: ExitStack) -> None:
    guest = a_guest(stack, short_dir, more=("-smp", "cores=2,threads=2"))
    with pytest.raises(LaunchUnknownError, match="-smp is more than a number"):
        launch_of(guest.identity.pid)


def test_a_request_is_known_by_its_header() -> None:
    assert parse_header(bytes.fromhex(REPORT)) is Command.REPORT
    assert parse_header(bytes.fromhex(CHAIN)) is Command.CHAIN
    for at in range(HEADER_BYTES):
        spoiled = bytearray.fromhex(REPORT)
        spoiled[at] ^= 0x80
        with pytest.raises(WireError):
            parse_header(bytes(spoiled))
