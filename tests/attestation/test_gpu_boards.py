"""GPUs in the mode and on the board that they should be: all of it, its switches alone, locked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from agent.attestation.gpu.board import board_checks, read_board
from agent.attestation.gpu.claims import BoardClaims, DeviceKind, Feature, GpuClaims
from agent.attestation.gpu.verify import verify_devices
from agent.attestation.policy import EvidencePolicy
from agent.config import AttestationConfig
from agent.model.evidence_edition import FIRST_EVIDENCE_EDITION, FLOORS_EDITION, MACHINES_EDITION
from agent.model.gpu import CcMode
from tests.fakes.nvidia import GPU_FIELDS, NONCE, NOW, SWITCH_FIELDS, FakeNvidia
from tests.tdx_gpu_vectors import GPU_TIME, board_evidence, gpu_evidence, needs_vectors

S1, S2, S3 = (bytes([n, 0xB7, 0x43, 0xD8, 0x11, 0xE9, 0x77, 9]) for n in (1, 2, 3))
GPUS = tuple(bytes([n, 0x53, 0x3A, 0x9E, 0x67, 0x32, 0x75, 8]) for n in range(1, 10))
EIGHT = frozenset(GPUS[:8])
NVIDIA = FakeNvidia()


def board(
    *, gpus: int = 8, switches: Sequence[bytes] = (S1, S2), **changes: Any
) -> list[GpuClaims]:
    """A good one; `changes` of every GPU's claims of the board."""
    seen = BoardClaims(feature=Feature.PPCIE, ids=frozenset(switches))
    made = [gpu(number, replace(seen, **changes)) for number in range(gpus)]
    return made + [switch(number, one) for number, one in enumerate(switches)]


def gpu(number: int, seen: BoardClaims, architecture: str = "HOPPER") -> GpuClaims:
    made = _device(DeviceKind.GPU, architecture, f"gpu-{number}", seen)
    return replace(made, id=GPUS[number])


def switch(
    number: int,
    own: bytes | None,
    lock: int | None = 1,
    gpus: frozenset[bytes] = EIGHT,
) -> GpuClaims:
    ids = frozenset({own}) if own else frozenset[bytes]()
    seen = BoardClaims(lock=lock, ids=ids, gpus=gpus)
    return _device(DeviceKind.NVSWITCH, "LS10", f"switch-{number}", seen)


def unnamed(*, gpus: Sequence[frozenset[bytes]] = (EIGHT, EIGHT)) -> list[GpuClaims]:
    """A board whose first GPU's certificate does not state its id; `gpus`: of each switch."""
    first, *others = board()[:8]
    switches = [
        switch(n, own, gpus=seen) for n, own, seen in zip((0, 1), (S1, S2), gpus, strict=True)
    ]
    return [replace(first, id=None), *others, *switches]


def _device(kind: DeviceKind, architecture: str, name: str, seen: BoardClaims) -> GpuClaims:
    return GpuClaims(
        kind=kind,
        architecture=architecture,
        chip="chip",
        device=name,
        identity=name,
        nonce=NONCE,
        measurements=(),
        fwid=None,
        vbios_version="1",
        driver_version=None,
        simulated=False,
        board=seen,
    )


def failed(devices: Sequence[GpuClaims], mode: CcMode | None = CcMode.PPCIE) -> list[str]:
    return [check.code for check in board_checks(devices, mode) if not check.passed]


def codes(devices: Sequence[GpuClaims], mode: CcMode | None) -> list[str]:
    return [check.code for check in board_checks(devices, mode)]


@needs_vectors
@pytest.mark.parametrize("mode", [CcMode.PPCIE, None])
def test_the_genuine_board_is_whole(mode: CcMode | None) -> None:
    gpus, switches = board_evidence()
    claims = verify_devices([*gpus, *switches], GPU_TIME)
    assert codes(claims, mode) == [
        *("gpu_mode", "gpu_one_architecture", "gpu_switches", "gpu_switch_gpus"),
        "gpu_switch_lock",
    ]
    assert failed(claims, mode) == []


@needs_vectors
def test_of_the_genuine_board_no_switch_may_be_missing_or_another_s() -> None:
    gpus, switches = board_evidence()
    claims = verify_devices([*gpus, *switches], GPU_TIME)
    assert failed(claims[:-1]) == ["gpu_switches"]
    assert failed(claims[:8]) == ["gpu_switches", "gpu_switch_gpus", "gpu_switch_lock"]
    (foreign,) = verify_devices(gpu_evidence("switch_evidence_ls10"), GPU_TIME)
    assert failed([*claims[:-1], foreign]) == ["gpu_switches", "gpu_switch_gpus"]


@needs_vectors
def test_of_the_genuine_board_no_gpu_may_be_missing_or_another_s() -> None:
    gpus, switches = board_evidence()
    claims = verify_devices([*gpus, *switches], GPU_TIME)
    assert failed(claims[1:]) == ["gpu_switch_gpus"]
    foreign = replace(claims[0], device="another", id=GPUS[0])
    assert failed([foreign, *claims[1:]]) == ["gpu_switch_gpus"]


@needs_vectors
@pytest.mark.parametrize("mode", [CcMode.ON, None])
def test_a_genuine_gpu_of_a_board_does_not_pass_for_one_alone(mode: CcMode | None) -> None:
    claims = verify_devices(gpu_evidence("hopper_evidence"), GPU_TIME)
    whole = ["gpu_switches", "gpu_switch_gpus", "gpu_switch_lock"]
    expected = ["gpu_mode"] if mode else whole
    assert failed(claims, mode) == expected


def test_a_good_board_passes() -> None:
    assert failed(board()) == []


@pytest.mark.parametrize(
    ("devices", "code"),
    [
        (board(feature=Feature.SPT), "gpu_mode"),
        (board(feature=Feature.MPT), "gpu_mode"),
        (board(feature=7), "gpu_mode"),
        (board(feature=None), "gpu_mode"),
        (board(feature=None, protected_pcie=False), "gpu_mode"),
        ([*board()[1:], gpu(0, board()[0].board, "BLACKWELL")], "gpu_one_architecture"),
        (board(ids=frozenset({S1})), "gpu_switches"),
        (board(ids=frozenset({S1, S2, S3})), "gpu_switches"),
        (board(ids=frozenset()), "gpu_switches"),
        ([*board()[1:], gpu(0, BoardClaims(feature=2, ids=frozenset({S1, S3})))], "gpu_switches"),
        ([*board(), switch(2, S3)], "gpu_switches"),
        ([*board(), switch(2, None)], "gpu_switches"),
        ([*board(), switch(2, S1)], "gpu_switches"),
        ([*board()[:-1], switch(1, S2, lock=0)], "gpu_switch_lock"),
        ([*board()[:-1], switch(1, S2, lock=None)], "gpu_switch_lock"),
        (board()[1:], "gpu_switch_gpus"),
        ([*board()[:-1], switch(1, S2, gpus=frozenset())], "gpu_switch_gpus"),
        ([*board()[:-1], switch(1, S2, gpus=EIGHT - {GPUS[7]})], "gpu_switch_gpus"),
        ([*board()[:-1], switch(1, S2, gpus=EIGHT | {GPUS[8]})], "gpu_switch_gpus"),
        ([*board()[:-1], switch(1, S2, gpus=EIGHT - {GPUS[0]} | {GPUS[8]})], "gpu_switch_gpus"),
        ([replace(board()[0], id=GPUS[8]), *board()[1:]], "gpu_switch_gpus"),
        ([replace(board()[0], id=GPUS[1]), *board()[1:]], "gpu_switch_gpus"),
        (unnamed(gpus=(EIGHT, EIGHT - {GPUS[0]} | {GPUS[8]})), "gpu_switch_gpus"),
    ],
)
def test_whatever_is_not_as_the_mode_wants_is_refused_by_its_name(
    devices: list[GpuClaims], code: str
) -> None:
    assert failed(devices) == [code]


def test_gpus_whose_certificates_do_not_name_them_are_counted_and_told_as_not_checked() -> None:
    told = [one for one in board_checks(unnamed(), CcMode.PPCIE) if one.checked is False]
    assert [(one.code, one.passed) for one in told] == [("gpu_switch_gpus_not_checked", True)]
    assert failed(unnamed()) == []


def test_older_reports_state_the_mode_in_another_field() -> None:
    devices = board(feature=None, protected_pcie=True)
    assert failed(devices) == []
    assert failed(devices[:1], CcMode.ON) == ["gpu_mode"]


@pytest.mark.parametrize(
    ("count", "feature", "good"),
    [
        (1, Feature.SPT, True),
        (1, Feature.MPT, False),
        (1, Feature.PPCIE, False),
        (2, Feature.SPT, True),
        (8, Feature.MPT, True),
        (8, Feature.PPCIE, False),
        (1, 7, False),
    ],
)
def test_without_protected_pcie_each_gpu_is_alone_or_encrypts_its_links(
    count: int, feature: int, good: bool
) -> None:
    gpus = [gpu(number, BoardClaims(feature=feature)) for number in range(count)]
    assert failed(gpus, CcMode.ON) == ([] if good else ["gpu_mode"])


@pytest.mark.parametrize("mode", [CcMode.ON, None])
def test_gpus_of_one_enclave_are_in_one_mode(mode: CcMode | None) -> None:
    gpus = [gpu(0, BoardClaims(feature=Feature.SPT)), gpu(1, BoardClaims(feature=Feature.MPT))]
    assert failed(gpus, mode) == ["gpu_mode"]


@pytest.mark.parametrize("mode", [CcMode.ON, None])
def test_a_report_that_does_not_say_its_mode_was_not_checked(mode: CcMode | None) -> None:
    (check,) = board_checks([gpu(0, BoardClaims())], mode)
    assert (check.code, check.passed, check.checked) == ("gpu_mode_not_checked", True, False)


def test_where_there_is_no_gpu_nothing_is_asked() -> None:
    assert list(board_checks([], CcMode.PPCIE)) == []


@pytest.mark.parametrize(
    ("fields", "kind", "claims"),
    [
        (
            {36: b"\x02\0", 21: b"\xaa", 22: S1[::-1] + bytes(8) + S2[::-1] + S1[::-1]},
            DeviceKind.GPU,
            BoardClaims(feature=2, protected_pcie=True, ids=frozenset({S1, S2})),
        ),
        ({21: b"\x55"}, DeviceKind.GPU, BoardClaims(protected_pcie=False)),
        ({22: S1[:7], 36: bytes(9)}, DeviceKind.GPU, BoardClaims()),
        ({}, DeviceKind.GPU, BoardClaims()),
        (
            {22: S1, 25: b"\x01\0", 26: b"".join(GPUS[:8]) + bytes(64), 36: b"\x02"},
            DeviceKind.NVSWITCH,
            BoardClaims(lock=1, ids=frozenset({S1}), gpus=EIGHT),
        ),
        (
            {22: S1, 26: GPUS[0] * 2 + GPUS[1] + bytes(40) + GPUS[2]},
            DeviceKind.NVSWITCH,
            BoardClaims(ids=frozenset({S1}), gpus=frozenset(GPUS[:2])),
        ),
        ({22: S1, 26: GPUS[0] * 7}, DeviceKind.NVSWITCH, BoardClaims(ids=frozenset({S1}))),
        ({22: S1 + S2, 25: b""}, DeviceKind.NVSWITCH, BoardClaims()),
    ],
)
def test_fields_are_read_to_the_letter_or_not_at_all(
    fields: dict[int, bytes], kind: DeviceKind, claims: BoardClaims
) -> None:
    assert read_board(fields, kind) == claims


def test_what_a_device_signed_is_what_is_judged() -> None:
    of_gpu = {**GPU_FIELDS, 36: b"\x02\0", 22: S1[::-1]}
    of_switch = {**SWITCH_FIELDS, 22: S1, 25: b"\x01\0", 26: GPUS[0] + bytes(120)}
    of_key = int.from_bytes(b"\x41" + GPUS[0])
    made = [
        NVIDIA.device("NVIDIA:GH100:48B02DF44660DA06", serial_number=of_key).evidence(
            fields=of_gpu
        ),
        NVIDIA.device("NVIDIA:LS_10:48B02DF44660DA07").evidence(fields=of_switch, arch="LS10"),
    ]
    claims = verify_devices(made, NOW, root_spki_sha256=NVIDIA.root)
    assert failed(claims) == []
    assert [one.id for one in claims] == [GPUS[0], None]
    assert failed(claims[:1]) == ["gpu_switches", "gpu_switch_gpus", "gpu_switch_lock"]


def test_what_was_admitted_before_boards_were_asked_for_is_not_held_to_one() -> None:
    policy = EvidencePolicy(config=AttestationConfig())
    assert policy.of_edition(MACHINES_EDITION).hold_to_board
    for edition in (FIRST_EVIDENCE_EDITION, FLOORS_EDITION):
        assert not policy.of_edition(edition).hold_to_board
    floors = policy.of_edition(FLOORS_EDITION)
    assert (floors.config, floors.unnamed_keys, floors.hold_to_manifests) == (
        *(policy.config, False, True),
    )
