"""Evidence of self-made devices: signed to the letter, and wrong in one thing at a time."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.attestation.evidence import EvidenceError
from agent.attestation.gpu.claims import DeviceKind, GpuClaims
from agent.attestation.gpu.spdm import parse_report
from agent.attestation.gpu.verify import (
    MAX_DEVICES,
    MAX_EVIDENCE_BYTES,
    GpuEvidence,
    decode_evidence,
    verify_gpus,
)
from tests.fakes.nvidia import (
    FWID,
    GPU_FIELDS,
    MEASUREMENTS,
    NONCE,
    NOW,
    SWITCH_FIELDS,
    FakeNvidia,
    measurement_record,
    opaque_data,
    tcb_info,
)

NVIDIA = FakeNvidia()
GPU = NVIDIA.device("NVIDIA:GH100:48B02D0000000001")


def verify(items: Sequence[GpuEvidence], count: int = 1) -> tuple[GpuClaims, ...]:
    return verify_gpus(items, NONCE, count, NOW, root_spki_sha256=NVIDIA.root)


def refusal(items: Sequence[GpuEvidence], count: int = 1) -> str:
    with pytest.raises(EvidenceError) as caught:
        verify(items, count)
    return caught.value.code


def test_a_self_made_device_is_believed_under_its_own_root_only():
    assert verify([GPU.evidence()])[0].measurements == MEASUREMENTS
    with pytest.raises(EvidenceError) as caught:
        verify_gpus([GPU.evidence()], NONCE, 1, NOW)
    assert caught.value.code == "gpu_chain_root"


def test_a_blackwell_gpu_and_its_chip_are_recognised():
    (gpu,) = verify([NVIDIA.device("NVIDIA:GB100:48B02D0000000002").evidence(arch="BLACKWELL")])
    assert (gpu.kind, gpu.architecture) == (DeviceKind.GPU, "BLACKWELL")


def test_eight_gpus_and_four_switches_are_counted_apart():
    gpus = [NVIDIA.device(f"NVIDIA:GH100:{n:016X}").evidence() for n in range(8)]
    switches = [
        NVIDIA.device(f"NVIDIA:LS_10:{n:016X}").evidence(arch="LS10", fields=SWITCH_FIELDS)
        for n in range(4)
    ]
    claims = verify([*gpus, *switches], 8)
    assert [device.kind for device in claims].count(DeviceKind.NVSWITCH) == 4
    assert refusal([*gpus, *switches], 12) == "gpu_count"


def test_no_gpus_and_no_evidence_agree():
    assert verify([], 0) == ()
    assert refusal([], 1) == "gpu_count"


def test_a_second_certificate_over_the_same_key_is_the_same_device():
    again = NVIDIA.device("NVIDIA:GH100:48B02D0000000003", brom=GPU.brom)
    assert refusal([GPU.evidence(), again.evidence()], 2) == "gpu_distinct"


def test_a_second_key_under_the_same_name_is_the_same_device():
    again = NVIDIA.device(GPU.name)
    assert refusal([GPU.evidence(), again.evidence()], 2) == "gpu_distinct"


def test_more_devices_than_a_host_can_have_are_not_looked_at():
    assert refusal([GPU.evidence()] * (MAX_DEVICES + 1)) == "gpu_count"


def test_firmware_other_than_the_certificates_is_refused():
    fields = {**GPU_FIELDS, 20: b"\x96" * 48}
    assert refusal([GPU.evidence(fields=fields)]) == "gpu_fwid"


def test_a_repeated_digest_needs_a_certificate_that_has_it():
    device = NVIDIA.device("NVIDIA:GH100:48B02D0000000004", fwid=None)
    assert refusal([device.evidence()]) == "gpu_fwid"
    odd = NVIDIA.device("NVIDIA:GH100:48B02D0000000005", fwid=FWID + b"\0")
    assert refusal([odd.evidence()]) == "gpu_fwid"


BLACKWELL = "NVIDIA:GB100:48B02D0000000042"


@pytest.mark.parametrize(
    "dice",
    [
        [tcb_info(FWID)],
        [tcb_info(FWID, bytes(48))],
        [tcb_info(FWID, oid="2.23.133.5.4.1")],
        [tcb_info(FWID, head=(), tail=())],
        [tcb_info(FWID), tcb_info(FWID, oid="2.23.133.5.4.1")],
    ],
)
def test_a_blackwell_states_its_firmware_in_a_tcb_info(dice: list[x509.UnrecognizedExtension]):
    device = NVIDIA.device(BLACKWELL, dice=dice)
    assert verify([device.evidence(arch="BLACKWELL")])[0].fwid == FWID
    other = {**GPU_FIELDS, 20: b"\x96" * 48}
    assert refusal([device.evidence(arch="BLACKWELL", fields=other)]) == "gpu_fwid"


@pytest.mark.parametrize(
    "dice",
    [
        [tcb_info()],
        [tcb_info(bytes(48), FWID)],
        [tcb_info(FWID[:32])],
        [tcb_info(FWID, FWID[:32])],
        [tcb_info(FWID, digest=bytes.fromhex("0609608648016503040201"))],
        [tcb_info(FWID, tail=(b"\x80\x01A",))],
        [tcb_info(FWID, tail=(b"\x30\x00",))],
        [tcb_info(FWID, tail=(b"\x87\x05\x00",))],
        [tcb_info(FWID, tail=(b"\xa6\x00",))],
        [tcb_info(FWID), tcb_info(b"\x96" * 48, oid="2.23.133.5.4.1")],
        [x509.UnrecognizedExtension(x509.ObjectIdentifier("2.23.133.5.4.1.1"), b"")],
        [],
    ],
)
def test_a_firmware_that_no_certificate_states_is_refused(
    dice: list[x509.UnrecognizedExtension],
):
    device = NVIDIA.device(BLACKWELL, dice=dice)
    assert refusal([device.evidence(arch="BLACKWELL")]) == "gpu_fwid"


def test_two_digests_that_differ_are_refused_though_the_report_repeats_none():
    device = NVIDIA.device(
        BLACKWELL, dice=[tcb_info(FWID), tcb_info(b"\x96" * 48, oid="2.23.133.5.4.1")]
    )
    fields = {n: value for n, value in GPU_FIELDS.items() if n != 20}
    assert refusal([device.evidence(arch="BLACKWELL", fields=fields)]) == "gpu_fwid"


def test_zeros_after_a_report_are_padding_and_anything_else_is_refused():
    assert verify([GPU.evidence(report=GPU.report() + bytes(4096))])
    for tail in (b"\1", bytes(4095) + b"\1", GPU.report()):
        padded = GPU.evidence(report=GPU.report() + tail)
        assert refusal([padded]) == "gpu_report_trailing_data"


def test_a_report_that_repeats_no_digest_is_told_as_not_compared():
    fields = {n: value for n, value in GPU_FIELDS.items() if n != 20}
    assert verify([GPU.evidence(fields=fields)])[0].fwid is None


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("NVIDIA:GP100:48B02D0000000006", "gpu_chip"),
        ("NVIDIA:GH100:48b02d0000000006", "gpu_identity"),
        ("NVIDIA:GH100:48B02D00000006", "gpu_identity"),
        ("OTHER:GH100:48B02D0000000006", "gpu_identity"),
        ("NVIDIA:GH100:48B02D0000000006 ", "gpu_identity"),
    ],
)
def test_a_device_must_name_itself_as_nvidias_do(name: str, code: str):
    assert refusal([NVIDIA.device(name).evidence()]) == code


@pytest.mark.parametrize(
    "names",
    [
        [b"\x0c\x00"],
        [b"\x0c\x01A"] * 2,
        [b"\x13\x01A"],
        [b"\x04\x02\x0c\x00"],
        [b"\x0c\x82\x01\x2c" + b"A" * 300],
    ],
)
def test_a_certificate_must_name_exactly_one_device_as_text(names: list[bytes]):
    device = NVIDIA.device("NVIDIA:GH100:48B02D0000000007", names=names)
    assert refusal([device.evidence()]) == "gpu_identity"


@pytest.mark.parametrize(
    "echoed", ["", NONCE.hex().upper(), "00" * 32, NONCE.hex() + "00", "zz" * 32]
)
def test_the_nonce_beside_the_report_must_be_its_own(echoed: str):
    assert refusal([GPU.evidence(echoed=echoed)]) == "gpu_nonce"


def test_a_signed_report_over_an_old_nonce_is_refused():
    assert refusal([GPU.evidence(bytes(32))]) == "gpu_nonce"


@pytest.mark.parametrize(
    ("record", "count"),
    [
        (b"", 0),
        (measurement_record(MEASUREMENTS), 3),
        (measurement_record(MEASUREMENTS), 5),
        (measurement_record([(2, b"\1" * 48), (1, b"\1" * 48)]), 2),
        (measurement_record([(1, b"\1" * 48), (1, b"\1" * 48)]), 2),
        (measurement_record([(1, b"\1" * 32)]), 1),
        (measurement_record([(1, b"\1" * 48)]).replace(b"\x01\x30\x00", b"\x81\x30\x00"), 1),
        (b"\x01\x02" + measurement_record([(1, b"\1" * 48)])[2:], 1),
        (b"\x01\x01\x34\x00\x01\x30\x00" + bytes(49), 1),
    ],
)
def test_measurements_must_be_rising_digests_as_many_as_declared(record: bytes, count: int):
    report = GPU.report(record=record, count=count)
    assert refusal([GPU.evidence(report=report)]) == "gpu_measurements"


@pytest.mark.parametrize("record", [b"\x01", b"\x01\x01\x33\x00\x01\x30\x00", b"\x01\x01\x00\x00"])
def test_measurements_must_not_end_in_the_middle(record: bytes):
    report = GPU.report(record=record, count=1)
    assert refusal([GPU.evidence(report=report)]) == "gpu_report_truncated"


@pytest.mark.parametrize(
    ("opaque", "code"),
    [
        (opaque_data(GPU_FIELDS) + opaque_data({3: b"1"}), "gpu_opaque_data"),
        (opaque_data(GPU_FIELDS) + b"\x01", "gpu_report_truncated"),
        (opaque_data(GPU_FIELDS) + b"\x01\x00\x05\x00", "gpu_report_truncated"),
        (opaque_data({**GPU_FIELDS, 3: b"\x1b[31m"}), "gpu_opaque_data"),
        (opaque_data({**GPU_FIELDS, 3: b""}), "gpu_opaque_data"),
        (opaque_data({**GPU_FIELDS, 6: b"96.00"}), "gpu_opaque_data"),
        (opaque_data({3: b"590.12"}), "gpu_opaque_data"),
        (opaque_data({6: bytes(8)}), "gpu_opaque_data"),
    ],
)
def test_opaque_fields_must_be_there_once_and_printable(opaque: bytes, code: str):
    report = GPU.report(opaque=opaque)
    assert refusal([GPU.evidence(report=report)]) == code


def test_a_report_that_is_too_long_is_not_read():
    report = GPU.report() + bytes(40_000)
    assert refusal([GPU.evidence(report=report)]) == "gpu_report_size"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{}",
        b"[{}]",
        b'[{"arch":"HOPPER","certificate":"","evidence":"","nonce":1}]',
        b'[{"arch":"HOPPER","certificate":"","evidence":"","nonce":"","nonce":""}]',
        b'[{"arch":"\xff","certificate":"","evidence":"","nonce":""}]',
        b"[" * 100_000,
        b" " * (MAX_EVIDENCE_BYTES + 1),
    ],
)
def test_the_list_of_evidence_is_read_to_the_letter(raw: bytes):
    with pytest.raises(EvidenceError) as caught:
        decode_evidence(raw)
    assert caught.value.code == "gpu_malformed"


def test_what_a_newer_collector_adds_is_tolerated():
    evidence = msgspec.to_builtins(GPU.evidence())
    more = {"version": "1.0", "driver_version": "1.0", "vbios_version": "none", "x": [1, None]}
    (read,) = decode_evidence(msgspec.json.encode([evidence | more]))
    assert verify([read])[0].driver_version == "590.12"


def test_the_list_of_evidence_is_read_in_its_order():
    items = (GPU.evidence(), NVIDIA.device("NVIDIA:GH100:48B02D0000000008").evidence())
    assert decode_evidence(msgspec.json.encode(items)) == items


@settings(max_examples=200)
@given(st.binary(max_size=600), st.integers(0, 400))
def test_no_bytes_make_the_report_parser_do_anything_but_refuse(data: bytes, keep: int):
    with pytest.raises(EvidenceError):
        parse_report(GPU_REPORT[:keep] + data)


GPU_REPORT = GPU.report()
