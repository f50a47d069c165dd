"""Of which machine, launch and devices evidence is: what is learned, what is held against it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from agent.attestation.origin import Chip, ChipSource, Origin
from agent.attestation.port import Check
from agent.attestation.recognition import (
    Known,
    Launch,
    Recognition,
    own_chips_told,
    recognise,
)
from agent.model.identity import Identity, KnownDevices, KnownLaunch, KnownMachine
from agent.model.ids import Bdf, EnclaveId
from simulator.rows import instant

HERE, ELSEWHERE = "machine-1", "machine-2"
OURS, THEIRS = (
    Chip(source=ChipSource.SNP, value="aa" * 64),
    Chip(source=ChipSource.SNP, value="bb" * 64),
)
A, B, C = (Bdf(f"0000:{n}1:00.0") for n in "123")
ORIGIN = Origin(chip=OURS, report_id="11" * 32, spki_sha256="5a" * 32)
MINE = Launch(uuid="launch-1", enclave=EnclaveId("aaaaaaaa"))
OTHER = Launch(uuid="launch-2", enclave=EnclaveId("bbbbbbbb"))


class Host:
    """What a host knows, and learns; a verdict a call."""

    def __init__(self, own_chips: Sequence[bytes] = (), machine: str = HERE) -> None:
        self.own = own_chips_told(own_chips)
        self.machine = machine
        self.rows: dict[tuple[type, str], Identity] = {}
        self.live: set[str] = {MINE.uuid, OTHER.uuid}
        self.at = 1000.0

    def sees(self, origin: Origin, launch: Launch = MINE, **changes: Any) -> Recognition:
        self.at += 1
        asked: dict[str, Any] = {"good": True, "admitted": True, "require_chip_id": False}
        known = Known(
            machine=self.machine,
            own_chips=self.own,
            machines=self.of(KnownMachine),
            launches=self.of(KnownLaunch),
            devices=self.of(KnownDevices),
            live=frozenset(self.live),
        )
        found = recognise(origin, launch, known, instant(self.at), **(asked | changes))
        for row in found.drop:
            del self.rows[type(row), row.key]
        for row in found.put:
            self.rows[type(row), row.key] = row
        return found

    def of(self, kind: type[Any]) -> list[Any]:
        return [row for (of, _), row in sorted(self.rows.items(), key=str) if of is kind]


def failed(found: Recognition) -> list[str]:
    return [check.code for check in found.checks if not check.passed]


def unchecked(found: Recognition) -> list[str]:
    assert all(check.passed for check in found.checks if not check.checked)
    return [check.code for check in found.checks if not check.checked]


def check(found: Recognition, code: str) -> Check:
    return next(one for one in found.checks if one.code == code)


def but(**changes: Any) -> Origin:
    return msgspec.structs.replace(ORIGIN, **changes)


def at(*places: Bdf, launch: str = "launch-1", of: str = "aaaaaaaa", **cards: str) -> Launch:
    names = {f"{places[0]} {kind}": value for kind, value in cards.items()}
    return Launch(uuid=launch, enclave=EnclaveId(of), places=places, cards=names)


# Which machine.


@pytest.mark.parametrize("chips", [(b"\xaa" * 64,), (b"\xbb" * 64, b"\xaa" * 64)])
def test_a_chip_of_any_socket_is_this_host_s(chips: Sequence[bytes]) -> None:
    host = Host(chips)
    assert (failed(host.sees(ORIGIN)), unchecked(host.sees(ORIGIN))) == ([], [])


def test_evidence_of_a_chip_that_no_socket_has_is_of_another_machine() -> None:
    host = Host((b"\xaa" * 64,))
    found = host.sees(but(chip=THEIRS))
    assert (failed(found), found.foreign) == (["chip_id"], True)
    assert "bb" * 64 in check(found, "chip_id").detail
    assert "aa" * 64 in check(found, "chip_id").detail
    assert host.rows == {}, "it claims and teaches nothing"


def test_turin_s_short_id_is_compared_with_its_zeros() -> None:
    chip = Chip(source=ChipSource.SNP, value="cc" * 8)
    host = Host((b"\xcc" * 8 + bytes(56),))
    assert failed(host.sees(but(chip=chip))) == []
    assert failed(host.sees(but(chip=Chip(source=ChipSource.SNP, value="cd" * 8)))) == ["chip_id"]


def test_where_the_processor_does_not_say_the_first_is_learned_and_a_change_told() -> None:
    host = Host()
    assert unchecked(host.sees(ORIGIN)) == ["chip_id_not_checked"]
    assert (unchecked(host.sees(ORIGIN)), failed(host.sees(ORIGIN))) == ([], [])
    moved = host.sees(but(chip=THEIRS))
    assert (failed(moved), moved.foreign) == (["chip_id"], False)
    assert OURS.value in check(moved, "chip_id").detail
    assert THEIRS.value in check(moved, "chip_id").detail
    assert failed(host.sees(ORIGIN)) == [], "what was known stands"


def test_a_store_on_another_machine_knows_nothing_of_the_chip() -> None:
    host = Host()
    host.sees(ORIGIN)
    host.machine = ELSEWHERE
    assert unchecked(host.sees(but(chip=THEIRS))) == ["chip_id_not_checked"]
    host.machine = HERE
    assert failed(host.sees(but(chip=THEIRS))) == ["chip_id"]


def test_what_is_not_good_otherwise_teaches_nothing() -> None:
    host = Host()
    host.sees(ORIGIN, good=False, admitted=False)
    assert host.rows == {}
    host.sees(ORIGIN, good=False)  # by yesterday's policy
    assert host.of(KnownMachine) == []


@pytest.mark.parametrize("required", [False, True])
def test_a_masked_chip_is_not_checked_and_refused_only_where_it_is_required(
    required: bool,
) -> None:
    found = Host((b"\xaa" * 64,)).sees(but(chip=None), require_chip_id=required)
    if required:
        assert failed(found) == ["chip_id"]
        assert "attestation.require_chip_id" in check(found, "chip_id").detail
    else:
        assert (failed(found), unchecked(found)) == ([], ["chip_id_not_checked"])


def test_a_host_whose_own_ids_are_masked_learns_instead() -> None:
    host = Host((bytes(64),))
    assert unchecked(host.sees(ORIGIN)) == ["chip_id_not_checked"]
    assert failed(host.sees(but(chip=THEIRS))) == ["chip_id"]


def test_platforms_of_tdx_are_learned_by_their_kind_of_id() -> None:
    for source in (ChipSource.INSTANCE, ChipSource.PPID):
        host = Host()
        first, second = (
            but(chip=Chip(source=source, value=value * 16), report_id=None)
            for value in ("01", "02")
        )
        assert "chip_id_not_checked" in unchecked(host.sees(first))
        assert unchecked(host.sees(first)) == ["report_id_not_checked"]
        assert failed(host.sees(second)) == ["chip_id"]


def test_another_kind_of_id_is_another_processor_s() -> None:
    """Whoever passes on what another machine answers could choose one that names itself so."""
    kinds = [Chip(source=source, value="01" * 16) for source in ChipSource]
    for ours in kinds:
        host = Host()
        host.sees(but(chip=ours))
        for theirs in kinds:
            found = host.sees(but(chip=theirs))
            assert failed(found) == ([] if theirs is ours else ["chip_id"])
            told = check(found, "chip_id").detail
            assert theirs is ours or (str(theirs) in told and f"it was {ours}" in told)


def test_a_trust_domain_is_of_no_processor_that_answers_for_itself_by_sev() -> None:
    host = Host((b"\xaa" * 64,))
    found = host.sees(but(chip=Chip(source=ChipSource.PPID, value="aa" * 64)))
    assert (failed(found), found.foreign) == (["chip_id"], True)


def test_guests_of_two_sockets_teach_nothing_in_turn() -> None:
    host = Host((b"\xaa" * 64, b"\xbb" * 64))
    there = but(chip=THEIRS, report_id="22" * 32, spki_sha256="6b" * 32)
    for _ in range(2):
        assert failed(host.sees(ORIGIN)) == failed(host.sees(there, OTHER)) == []
    before = dict(host.rows)
    assert [host.sees(ORIGIN).put, host.sees(there, OTHER).put] == [(), ()]
    assert host.rows == before


def test_a_processor_is_remembered_in_the_place_of_one_of_another_kind() -> None:
    host = Host()
    host.sees(but(chip=Chip(source=ChipSource.PPID, value="01" * 16)))
    host.own = own_chips_told((b"\xaa" * 64,))
    assert failed(host.sees(ORIGIN)) == []
    (row,) = host.of(KnownMachine)
    assert (row.source, row.chip) == (ChipSource.SNP, OURS.value)


# Which launch.


def test_the_report_id_of_a_launch_stays_the_same() -> None:
    host = Host()
    host.sees(ORIGIN)
    found = host.sees(but(report_id="22" * 32))
    assert failed(found) == ["report_id"]
    assert "11" * 32 in check(found, "report_id").detail
    assert failed(host.sees(ORIGIN)) == []


@pytest.mark.parametrize("live", [True, False])
def test_a_report_id_is_of_one_launch_for_ever(live: bool) -> None:
    host = Host()
    host.sees(ORIGIN)
    if not live:
        host.live.discard(MINE.uuid)
    other = but(spki_sha256="6b" * 32)
    assert failed(host.sees(other, OTHER)) == ["report_id"]
    again = Launch(uuid="launch-3", enclave=MINE.enclave)
    assert failed(host.sees(other, again)) == ["report_id"], "nor of the enclave's next launch"


def test_launches_of_long_ago_are_forgotten_and_those_that_are_there_are_not() -> None:
    host = Host()
    host.sees(ORIGIN)
    for number in range(600):
        origin = but(report_id=f"{number:064x}", spki_sha256=f"{number:064x}")
        host.sees(origin, Launch(uuid=f"past-{number}", enclave=EnclaveId(f"past-{number}")))
    kept = {row.launch_uuid for row in host.of(KnownLaunch)}
    assert MINE.uuid in kept
    assert "past-599" in kept
    assert "past-0" not in kept
    assert len(kept) <= 514


def test_a_tls_key_in_two_enclaves_makes_neither_believed() -> None:
    host = Host()
    host.sees(ORIGIN)
    found = host.sees(but(report_id="22" * 32), OTHER)
    assert (failed(found), found.disputed) == (["tls_key_alone"], (MINE.enclave,))
    mine = host.sees(ORIGIN)
    assert (failed(mine), mine.disputed) == (["tls_key_alone"], (OTHER.enclave,))
    host.live.discard(OTHER.uuid)
    assert failed(host.sees(ORIGIN)) == [], "the other one is gone"


def test_who_passes_on_what_another_guest_answers_takes_nothing_from_it() -> None:
    host = Host()
    host.sees(ORIGIN)
    found = host.sees(ORIGIN, OTHER)
    assert (failed(found), found.disputed) == (["report_id"], ())
    assert failed(host.sees(ORIGIN)) == []


def test_two_with_one_key_and_no_name_of_a_launch_are_not_told_apart() -> None:
    host = Host()
    origin = but(report_id=None)
    host.sees(origin)
    assert failed(host.sees(origin, OTHER)) == ["tls_key_alone"]
    assert failed(host.sees(origin)) == ["tls_key_alone"]


def test_a_key_that_was_given_up_is_anybody_s() -> None:
    host = Host()
    host.sees(ORIGIN)
    host.sees(but(spki_sha256="6b" * 32))
    assert failed(host.sees(but(report_id="22" * 32), OTHER)) == []


def test_what_was_refused_otherwise_disputes_nothing() -> None:
    host = Host()
    host.sees(ORIGIN)
    bad = host.sees(but(report_id="22" * 32), OTHER, good=False, admitted=False)
    assert bad.disputed == ()
    assert failed(host.sees(ORIGIN)) == []


# Which devices.


def test_one_gpu_at_a_place_stays_the_same() -> None:
    host = Host()
    first = host.sees(but(devices=("g1",)), at(A))
    assert "gpu_identity_not_checked" in unchecked(first)
    assert unchecked(host.sees(but(devices=("g1",)), at(A))) == []
    found = host.sees(but(devices=("g2",)), at(A))
    assert failed(found) == ["gpu_identity"]
    told = check(found, "gpu_identity").detail
    assert "g1" in told
    assert "g2" in told
    assert A in told


def test_of_a_set_the_identities_are_compared_as_a_set() -> None:
    host = Host()
    host.sees(but(devices=("g1", "g2")), at(A, B))
    assert failed(host.sees(but(devices=("g1", "g2")), at(A, B))) == []
    assert failed(host.sees(but(devices=("g1", "g3")), at(A, B))) == ["gpu_identity"]


@pytest.mark.parametrize(
    ("places", "devices", "good"),
    [
        ((A,), ("g1",), True),
        ((A,), ("g2",), True),
        ((A,), ("g9",), False),
        ((C,), ("g9",), True),
        ((A, B, C), ("g1", "g2", "g3"), True),
        ((A, B, C), ("g1", "g3", "g4"), False),
        ((B, C), ("g3", "g4"), True),
    ],
)
def test_sets_that_hold_one_another_are_compared(
    places: tuple[Bdf, ...], devices: tuple[str, ...], good: bool
) -> None:
    host = Host()
    host.sees(but(devices=("g1", "g2")), at(A, B))
    found = host.sees(but(devices=devices), at(*places))
    assert failed(found) == ([] if good else ["gpu_identity"])


def test_a_card_that_was_replaced_is_learned_anew() -> None:
    host = Host()
    host.sees(but(devices=("g1",)), at(A, serial="s1"))
    host.sees(but(devices=("g1", "g2")), at(A, B, serial="s1"))
    replaced = host.sees(but(devices=("g7",)), at(A, serial="s2"))
    assert failed(replaced) == []
    assert "gpu_identity_not_checked" in unchecked(replaced)
    assert [row.devices for row in host.of(KnownDevices)] == [("g7",)], "in every set"
    assert failed(host.sees(but(devices=("g1",)), at(A, serial="s2"))) == ["gpu_identity"]


@pytest.mark.parametrize("cards", [{}, {"uuid": "GPU-1"}])
def test_what_the_host_cannot_tell_of_a_card_is_no_replacement(cards: dict[str, str]) -> None:
    host = Host()
    host.sees(but(devices=("g1",)), at(A, serial="s1"))
    assert failed(host.sees(but(devices=("g7",)), at(A, **cards))) == ["gpu_identity"]
    host.sees(but(devices=("g1",)), at(A, **cards))
    assert failed(host.sees(but(devices=("g7",)), at(A, serial="s2"))) == [], "s1 was kept"


def test_one_device_in_two_launches_at_once_makes_neither_believed() -> None:
    host = Host()
    host.sees(but(devices=("g1",)), at(A))
    other = but(report_id="22" * 32, spki_sha256="6b" * 32, devices=("g1",))
    found = host.sees(other, at(B, launch=OTHER.uuid, of=OTHER.enclave))
    assert (failed(found), found.disputed) == (["gpu_alone"], (MINE.enclave,))
    assert failed(host.sees(but(devices=("g1",)), at(A))) == ["gpu_alone"]
    host.live.discard(OTHER.uuid)
    assert failed(host.sees(but(devices=("g1",)), at(A))) == []


def test_the_next_launch_with_the_same_gpu_is_no_dispute() -> None:
    host = Host()
    host.sees(but(devices=("g1",)), at(A))
    again = but(report_id="22" * 32, spki_sha256="6b" * 32, devices=("g1",))
    host.live.discard(MINE.uuid)
    assert failed(host.sees(again, at(A, launch="launch-3"))) == []


def test_evidence_that_is_as_it_was_has_nothing_written() -> None:
    host = Host()
    origin, launch = but(devices=("g1",)), at(A, serial="s1")
    host.sees(origin, launch)
    found = host.sees(origin, launch)
    assert (found.put, found.drop) == ((), ())
