"""Command lines of confidential guests against the real parsers, in cuts, without the hardware.

SEV and TDX fail before any `-device` is read, and the first device of the host that is missing
ends the reading. So: the whole line, which must fail for want of the hardware and of nothing
else; the line without the guest object, under TCG, with a stand-in for each device of the host,
which must start; and every key once misspelt, which must be told by its name.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from agent.enclaves.argv import build_argv
from agent.enclaves.spec import VmSpec
from tests.fakes import vm_specs
from tests.fakes.argv_bench import (
    Bench,
    addresses,
    cached_qemu,
    key_paths,
    look,
    misspelt,
    stand_in,
    started,
)

pytestmark = pytest.mark.qemu

# Which QEMU a kind of guest needs; plain and simulated ones have iommufd in these golden lines.
PARSER = {"snp": "snp", "tdx": "tdx", "tdx-unix": "tdx", "simulated": "snp", "plain": "snp"}
SIZES = ("0-gpus", "1-gpu", "everything", "debug")
SENTINEL = ["-device", '{"driver":"no-such"}']  # else a line that is taken would run for ever
TAKEN = "'no-such' is not a valid device"
USER_NET = '{"type":"user","id":"net"}'
RUNS = itertools.count()
SMALL_MIB = 64  # what memory a cut has: the backend's size is its own key


def parser(kind: str) -> str:
    binary = cached_qemu(PARSER[kind])
    if binary is None:
        pytest.skip(f"no QEMU for {PARSER[kind]} in .cache/qemu: scripts/fetch-qemu fetches it")
    return binary


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with ExitStack() as stack:
        yield Bench(tmp_path, stack)


def make(kind: str, size: str, bench: Bench) -> VmSpec:
    """The golden VM of that kind and size, over files that are there."""
    run = bench.directory / "q"
    if size in vm_specs.PUBLIC:
        spec = vm_specs.public_board(size, bench.inherited, vm_specs.TAP, run)
        return replace(spec, memory_mib=SMALL_MIB, vcpus=2)
    if size == "everything":
        spec = vm_specs.with_everything(kind, bench.inherited, vm_specs.TAP, run)
        return replace(spec, memory_mib=SMALL_MIB, vcpus=2)
    spec = replace(
        vm_specs.tee_spec(kind, bench.inherited, vm_specs.TAP, run), memory_mib=SMALL_MIB
    )
    if size == "debug":
        return vm_specs.debug(spec)
    return vm_specs.with_board(spec, 1) if size == "1-gpu" else spec


# A guest's node need not be there on the machine of the test.
def any_node(words: list[str]) -> list[str]:
    return [word.replace('"host-nodes":[1]', '"host-nodes":[0]') for word in words]


HARDWARE_OBJECTS = tuple(
    f'{{"qom-type":"{kind}"' for kind in ("sev-snp-guest", "tdx-guest", "iommufd")
)


def cut(argv: list[str], keep: int | None = None) -> list[str]:
    """Without what needs the hardware: guest object, iommufd, KVM, devices; but word `keep`."""
    words: list[str] = []
    for place, word in enumerate(argv):
        if place == 0:
            continue
        before = argv[place - 1]
        if word.startswith(HARDWARE_OBJECTS) and place != keep:
            words.pop()
            continue
        if place == keep:  # its guest object is not there, which would be told first
            words.append(unlinked(word).replace("confidential-guest-support=tee,", ""))
        elif before == "-machine":
            words.append(word.replace("confidential-guest-support=tee,", ""))
        elif before == "-accel":
            words.append("tcg")
        elif before == "-cpu":
            # The host that is not there: its processor has more address bits than that of TCG.
            words.append("max,phys-bits=46" if word == "host" else word)
        elif before == "-netdev":
            words.append(USER_NET)
        else:
            words.append(stand_in(word))
    return ["-S", *any_node(words)]


def unlinked(word: str) -> str:
    """A device that is kept refers to no iommufd, which is not there."""
    if '"vfio-pci"' not in word:
        return word
    device = json.loads(word)
    device.pop("iommufd", None)
    return json.dumps(device)


HARDWARE = re.compile(
    r"Could not access KVM kernel module|failed to initialize kvm|/dev/(?:sev|iommu)|SEV|TDX|tdx|"
    r"vm-type|KVM is required|confidential",
)


@pytest.mark.parametrize(
    ("kind", "size"),
    [*itertools.product(("snp", "tdx"), SIZES), *(("tdx", one) for one in vm_specs.PUBLIC)],
)
def test_the_whole_line_wants_nothing_but_the_hardware(kind: str, size: str, bench: Bench) -> None:
    binary = parser(kind)
    argv = build_argv(binary, make(kind, size, bench))
    with started(any_node(argv[1:]), bench.fds, binary) as process:
        _, stderr = process.communicate(timeout=30)
    text = stderr.decode()
    assert process.returncode == 1
    assert HARDWARE.search(text), text
    assert "not found" not in text, text
    assert "nvalid parameter" not in text, text
    assert "unexpected" not in text, text


@pytest.mark.parametrize("kind", ["snp", "tdx", "simulated", "plain"])
@pytest.mark.parametrize("size", SIZES)
async def test_the_line_without_the_hardware_starts(kind: str, size: str, bench: Bench) -> None:
    binary = parser(kind)
    spec = make(kind, size, bench)
    seen = await look(cut(build_argv(binary, spec)), bench.fds, bench.directory / "q", binary)
    assert seen["status"]["status"] == "prelaunch"
    assert seen["append"] == spec.cmdline
    placed = addresses(seen["pci"])
    assert [placed[f"{n}-disk"] for n in ("root", "config", "ext-config")] == [
        "04.0",
        "05.0",
        "06.0",
    ]
    assert len(seen["behind"]) == len(spec.gpus) + len(spec.switches)
    for passed, behind in seen["behind"].items():
        port = passed.replace("passed", "port")
        assert behind == f"/machine/peripheral/{port}/{port}"
    if size == "everything":
        assert [placed[f"port{n}"] for n in (1, 8, 9, 12)] == ["01.0", "01.7", "03.0", "03.3"]
        assert [placed[f"data{n}-disk"] for n in (1, 2, 3)] == ["07.0", "08.0", "09.0"]


@dataclass(frozen=True)
class Mutation:
    """One key misspelt, in one word of a command line."""

    what: tuple[object, ...]
    place: int
    word: str


WITH_KEYS = {"-name", "-sandbox", "-machine", "-cpu", "-chardev", "-mon", "-add-fd", "-fw_cfg"}
WITH_KEYS |= {"-global"}
KEY = re.compile(r"(?:^|,)([+a-z0-9._-]+)=|(?:^|,)\+([a-z0-9._-]+)")


def mutations(argv: list[str]) -> Iterator[Mutation]:
    """Of every key of every word, and of every option's name."""
    for place, word in enumerate(argv[1:], 1):
        option = argv[place - 1]
        if word.startswith("{"):
            value = json.loads(word)
            kind = value.get("driver") or value.get("qom-type") or value.get("type")
            for path in key_paths(value):
                yield Mutation((option, kind, *path), place, misspelt(value, path))
        elif option in WITH_KEYS:
            for match in KEY.finditer(word):
                group = 1 if match[1] else 2
                end = match.end(group)
                kind = word.split(",")[0] if option == "-chardev" else ""
                yield Mutation((option, kind, match[group]), place, f"{word[:end]}x{word[end:]}")
        elif word.startswith("-") and option not in {"-append", "-kernel"}:
            yield Mutation((word,), place, f"{word}x")


def answer(binary: str, argv: list[str], bench: Bench, mutation: Mutation | None) -> str:
    """What QEMU says of a line with that key misspelt; the sentinel if it took all of it."""
    keep = None
    if mutation is not None:
        argv = [*argv[: mutation.place], mutation.word, *argv[mutation.place + 1 :]]
        keep = mutation.place
    own = f"path={bench.directory}/{next(RUNS)}-"  # sockets of its own: others run beside it
    words = [word.replace(f"path={bench.directory}/", own) for word in cut(argv, keep)]
    with started([*words, *SENTINEL], bench.fds, binary) as process:
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1, (mutation, stderr)
    return stderr.decode()


def is_told(mutation: Mutation, text: str) -> bool:
    """By the misspelt name, or by the right one if that is missed first; no echo counts."""
    key, said = str(mutation.what[-1]), text.replace(mutation.word, "")
    if len(mutation.what) == 1:
        return "invalid option" in said
    missing = re.search(rf"'?{re.escape(key)}'? (?:is missing|property is not set)", said)
    return f"{key}x" in said or missing is not None


def untried(kind: str, argv: list[str], tried: set[tuple[object, ...]]) -> list[Mutation]:
    found = []
    for mutation in mutations(argv):
        if mutation.what not in tried:
            tried.add(mutation.what)
            found.append(mutation)
    return found


@pytest.mark.parametrize(
    ("layout", "places"),
    [
        ("hopper", [*(f"16.{n}" for n in range(8)), *(f"17.{n}" for n in range(4))]),
        ("blackwell", [f"16.{n}" for n in range(8)]),
        ("single", ["01.0"]),
    ],
)
async def test_the_public_launcher_s_root_ports_are_where_it_has_them(
    layout: str, places: list[str], bench: Bench
) -> None:
    """QEMU places the one port that has no address, the first of its bus that is free."""
    binary = parser("tdx")
    spec = make("tdx", layout, bench)
    seen = await look(cut(build_argv(binary, spec)), bench.fds, bench.directory / "q", binary)
    placed = addresses(seen["pci"])
    assert [placed[f"port{n}"] for n in range(1, len(places) + 1)] == places
    assert [placed[f"data{n}-disk"] for n in (1, 2, 3)] == ["07.0", "08.0", "09.0"]
    assert (placed["nic"], placed["root-disk"]) == ("02.0", "04.0")
    for passed, behind in seen["behind"].items():
        port = passed.replace("passed", "port")
        assert behind == f"/machine/peripheral/{port}/{port}"


@pytest.mark.slow
@pytest.mark.parametrize("tee", ["snp", "tdx"])
def test_every_misspelt_key_is_told(tee: str, bench: Bench) -> None:
    """Of every golden line of that parser once; a key that is ignored could hide for years."""
    kinds = [kind for kind, needs in PARSER.items() if needs == tee]
    binary, tried = parser(kinds[0]), set[tuple[object, ...]]()
    missed = []
    lines = [(kind, "everything") for kind in kinds]
    lines += [("tdx", layout) for layout in vm_specs.PUBLIC if tee == "tdx"]
    for kind, size in lines:
        own = bench.within(f"{kind}-{size}")
        argv = build_argv(binary, vm_specs.debug(make(kind, size, own)))
        assert TAKEN in answer(binary, argv, own, None)  # all that is right is taken
        todo = untried(kind, argv, tried)
        with ThreadPoolExecutor(2) as pool:
            said = pool.map(lambda m, a=argv, b=own: answer(binary, a, b, m), todo)
            for mutation, text in zip(todo, said, strict=True):
                if TAKEN in text or not is_told(mutation, text):
                    missed.append((mutation.what, text))
    assert not missed
    guest = {"snp": "sev-snp-guest", "tdx": "tdx-guest"}[tee]
    assert ("-object", guest, "id") in tried
    assert ("-device", "vfio-pci", "iommufd") in tried
    assert len(tried) > 80


def test_every_key_of_every_golden_line_is_among_those_that_are_misspelt() -> None:
    """The parser's lines have the keys of the golden ones, whatever their size."""
    tried = set()
    for kind in PARSER:
        spec = vm_specs.with_everything(kind, vm_specs.imagined(), vm_specs.TAP, vm_specs.RUN)
        spec = vm_specs.debug(spec)
        tried |= {mutation.what for mutation in mutations(build_argv("qemu", spec))}
    for layout in vm_specs.PUBLIC:
        spec = vm_specs.public_board(layout, vm_specs.imagined(), vm_specs.TAP, vm_specs.RUN)
        tried |= {mutation.what for mutation in mutations(build_argv("qemu", spec))}
    golden = {
        mutation.what
        for spec in vm_specs.boards().values()
        for mutation in mutations(build_argv("qemu", spec))
    }
    assert golden - tried <= {
        what for what in golden if what[:2] in {("-netdev", "user")} or what[0] == "-bios"
    }
