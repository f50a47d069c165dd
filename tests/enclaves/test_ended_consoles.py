"""Consoles outlive their enclaves: few, short, and only where the guest printed something."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import msgspec
import pytest

from agent.enclaves.ended_consoles import KEPT_BYTES, OF_ALL, OF_ONE, EndedConsoles
from agent.model.ids import DeploymentName, EnclaveId
from tests.fakes.vms import row

NAMES = [EnclaveId(f"aaaaaa{a}{b}") for a in "abcdefghijklm" for b in "abcdefgh"]


def ended(root: Path, enclave: EnclaveId, name: str = "web", said: str = "said", at: int = 0):
    """One that printed and is gone; its console is taken."""
    directory = root / "consoles" / enclave
    vm = msgspec.structs.replace(row(enclave), deployment=DeploymentName(name))
    kept = EndedConsoles(root)
    kept.mark(vm, "v1")
    if said:
        directory.mkdir(parents=True)
        (directory / "console.log").write_text(said)
        os.utime(directory / "console.log", (1_000_000 + at, 1_000_000 + at))
    kept.take(directory, enclave)
    assert not directory.exists()
    assert kept.marked() == set()
    return kept


def test_the_newest_of_each_deployment_are_kept(tmp_path: Path) -> None:
    for n in range(OF_ONE + 2):
        ended(tmp_path, NAMES[n], said=f"I am {n}", at=n)
    kept = ended(tmp_path, NAMES[50], "api", at=99)
    assert [one.enclave for one in kept.listed(DeploymentName("web"))] == [
        NAMES[n] for n in reversed(range(2, OF_ONE + 2))
    ]
    (api,) = kept.listed(DeploymentName("api"))
    assert (api.tag, api.bytes, api.ended_at) == ("v1", 4, 1_000_099)
    assert kept.tail(NAMES[3], 100) == b"I am 3"
    assert kept.tail(NAMES[0], 100) is None


def test_of_all_deployments_so_many_are_kept(tmp_path: Path) -> None:
    for n in range(OF_ALL + 5):
        kept = ended(tmp_path, NAMES[n], f"web-{n}", at=n)
    assert len(kept.listed()) == OF_ALL
    assert kept.listed()[-1].enclave == NAMES[5]


def test_a_long_one_is_cut_to_its_end_and_stays_as_old(tmp_path: Path) -> None:
    kept = ended(tmp_path, NAMES[0], said="x" * (2 * KEPT_BYTES) + "the end", at=7)
    (one,) = kept.listed()
    assert (one.bytes, one.ended_at) == (KEPT_BYTES, 1_000_007)
    assert kept.tail(NAMES[0], 7) == b"the end"


def test_a_console_in_two_pieces_is_one(tmp_path: Path) -> None:
    directory = tmp_path / "consoles" / NAMES[0]
    directory.mkdir(parents=True)
    (directory / "console.log.1").write_text("older ")
    (directory / "console.log").write_text("newer")
    kept = EndedConsoles(tmp_path)
    kept.mark(row(NAMES[0]), "v1")
    assert kept.marked() == {NAMES[0]}
    kept.take(directory, NAMES[0])
    assert kept.tail(NAMES[0], 100) == b"older newer"


@pytest.mark.parametrize("marked", [True, False])
def test_an_image_that_prints_nothing_or_nobodys_leaves_nothing(
    tmp_path: Path, marked: bool
) -> None:
    if marked:
        assert ended(tmp_path, NAMES[0], said="").listed() == []
        return
    directory = tmp_path / "consoles" / NAMES[0]
    directory.mkdir(parents=True)
    (directory / "console.log").write_text("whose?")
    kept = EndedConsoles(tmp_path)
    kept.take(directory, NAMES[0])
    assert (kept.listed(), directory.exists()) == ([], False)


def test_a_crash_after_any_step_loses_none_and_doubles_none(tmp_path: Path) -> None:
    kept = ended(tmp_path, NAMES[0], said="kept")
    kept.take(tmp_path / "consoles" / NAMES[0], NAMES[0])  # asked again: it is there already
    assert kept.tail(NAMES[0], 10) == b"kept"
    half = tmp_path / "consoles" / NAMES[2]  # killed between the two moves
    half.mkdir(parents=True)
    (half / "console.log").write_text("half")
    kept.mark(row(NAMES[2]), "v1")
    (tmp_path / "console-owners" / NAMES[2]).rename(half / "about.json")
    kept.take(half, NAMES[2])
    assert kept.tail(NAMES[2], 10) == b"half"
    broken = tmp_path / "ended-consoles" / NAMES[1]
    broken.mkdir()
    (broken / "about.json").write_text("{")
    (tmp_path / "ended-consoles" / "odd").mkdir()
    assert {one.enclave for one in kept.listed()} == {NAMES[0], NAMES[2]}
    kept.tidy()
    assert not broken.exists()


def test_others_on_the_host_cannot_read_them(tmp_path: Path) -> None:
    ended(tmp_path, NAMES[0])
    for name in ("ended-consoles", "console-owners"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o700


def test_the_newest_is_kept_although_the_wall_clock_was_set_back(tmp_path: Path) -> None:
    for n in range(OF_ONE):
        ended(tmp_path, NAMES[n], at=3600 + n)
    kept = ended(tmp_path, NAMES[9], at=0)
    assert [one.enclave for one in kept.listed()] == [NAMES[9], *reversed(NAMES[1:OF_ONE])]
