"""The table of an extended report: what the hypervisor wrote is read within its bounds."""

from __future__ import annotations

import struct
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.attestation.evidence import EvidenceError
from agent.attestation.snp_table import parse_certificate_table

VCEK = UUID("63da758d-e664-4564-adc5-f4b93be8accd")
VLEK = UUID("a8074bc2-a25a-483e-aae6-39c045a0b8a1")
ASK = UUID("4ab7b379-bbac-4fe4-a02f-05aef327c782")
ARK = UUID("c0b406a4-a803-4952-9743-3fb6014cd0ae")
OTHER = UUID("00000000-0000-0000-0000-000000000001")


def table(*entries: tuple[UUID, bytes], end: bytes = bytes(24)) -> bytes:
    at = 24 * (len(entries) + 1)
    head = b""
    for guid, data in entries:
        head += struct.pack("<16sII", guid.bytes, at, len(data))
        at += len(data)
    return head + end + b"".join(data for _, data in entries)


def test_certificates_are_found_by_their_guid() -> None:
    made = table((VCEK, b"leaf"), (OTHER, b"?"), (ASK, b"ask"), (ARK, b"ark"), (VLEK, b"v"))
    assert parse_certificate_table(made + bytes(100)) == {
        "vcek": b"leaf",
        "ask": b"ask",
        "ark": b"ark",
        "vlek": b"v",
    }
    assert parse_certificate_table(bytes(4096)) == {}


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (b"", "no end"),
        (bytes(23), "no end"),
        (table((VCEK, b"x"), end=b""), "no end|outside"),
        (table((VCEK, b"x"), (VCEK, b"y")), "two entries"),
        (table((VCEK, b"")), "outside"),
        (table((VCEK, b"xy"))[:-1], "outside"),
        (struct.pack("<16sII", VCEK.bytes, 8, 4) + bytes(24), "outside"),
        (struct.pack("<16sII", VCEK.bytes, 0xFFFFFFFF, 1) + bytes(24), "outside"),
        (struct.pack("<16sII", VCEK.bytes, 48, 0xFFFFFFFF) + bytes(24), "outside"),
        (struct.pack("<16sII", bytes(16), 1, 0), "not all zero"),
        (table(*[(OTHER, b"x")] * 17), "more than 16"),
    ],
)
def test_a_table_that_lies_is_refused(made: bytes, why: str) -> None:
    with pytest.raises(EvidenceError, match=why) as caught:
        parse_certificate_table(made)
    assert caught.value.code == "certificate_table"


@given(st.binary(max_size=200))
def test_noise_is_read_or_refused(noise: bytes) -> None:
    try:
        found = parse_certificate_table(noise)
    except EvidenceError:
        return
    assert all(data in noise for data in found.values())
