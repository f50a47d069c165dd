"""DER is read as a library reads it, or refused; nothing but DerError ever comes of it."""

from __future__ import annotations

import datetime as dt

import pytest
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.attestation import der
from agent.attestation.evidence import EvidenceError
from agent.attestation.snp_certificate import parse_certificate
from agent.attestation.snp_crl import verify_crl
from tests.attestation.refusals import MILAN, TURIN, VLEK
from tests.fakes.snp_chain import NOW


@pytest.mark.parametrize("amd", [MILAN, TURIN, VLEK], ids=lambda amd: f"{amd.product}{amd.signer}")
@pytest.mark.parametrize("part", ["leaf", "ask", "ark"])
def test_a_certificate_is_what_a_library_says_it_is(amd, part: str) -> None:
    data = getattr(amd.endorsements, part)
    ours = parse_certificate(data, part)
    theirs = x509.load_der_x509_certificate(data)
    assert ours.serial == theirs.serial_number
    assert (ours.not_before, ours.not_after) == (
        theirs.not_valid_before_utc,
        theirs.not_valid_after_utc,
    )
    assert ours.issuer == theirs.issuer.public_bytes()
    assert ours.subject == theirs.subject.public_bytes()
    assert (ours.tbs, ours.signature) == (theirs.tbs_certificate_bytes, theirs.signature)
    assert list(ours.extensions) == [one.oid.dotted_string for one in theirs.extensions]


@pytest.mark.parametrize(
    ("content", "value"),
    [(b"\0", 0), (b"\x7f", 127), (b"\0\x80", 128), (b"\xff", -1), (b"\xff\x7f", -129)],
)
def test_an_integer_has_one_form(content: bytes, value: int) -> None:
    assert der.integer(content, "it") == value
    for longer in (b"", b"\0" + content if value >= 0 and content[0] < 128 else b"\xff" + content):
        if longer != b"\xff\x7f":
            with pytest.raises(der.DerError):
                der.integer(longer, "it")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x30",
        b"\x30\x80\0\0",  # without a definite length
        b"\x30\x81\x01\0",  # a length that fits one byte
        b"\x30\x82\0\x80" + bytes(128),  # a length of a byte more than it needs
        b"\x30\x85\0\0\0\0\1\0",
        b"\x1f\x81\1\0",  # a tag of two bytes
        b"\x30\x01",
        b"\x31\0",
        b"\x30\0\0",
    ],
)
def test_another_form_is_refused(data: bytes) -> None:
    with pytest.raises(der.DerError):
        der.sole(data, der.SEQUENCE, "it")


@pytest.mark.parametrize("content", [b"", b"\x80\1", b"\x2a\x80", b"\x2a\x80\1"])
def test_an_object_identifier_has_one_form(content: bytes) -> None:
    with pytest.raises(der.DerError):
        der.oid(content, "it")


def test_object_identifiers_read_as_they_are_written() -> None:
    assert der.oid(bytes.fromhex("2b060104019c78010308"), "it") == "1.3.6.1.4.1.3704.1.3.8"
    assert der.oid(bytes.fromhex("883703"), "it") == "2.999.3"
    assert der.oid(b"\x27", "it") == "0.39"


@pytest.mark.parametrize(
    ("tag", "text", "expected"),
    [
        (der.UTC_TIME, b"491231235959Z", dt.datetime(2049, 12, 31, 23, 59, 59, tzinfo=dt.UTC)),
        (der.UTC_TIME, b"500101000000Z", dt.datetime(1950, 1, 1, tzinfo=dt.UTC)),
        (der.GENERALIZED_TIME, b"20500101000000Z", dt.datetime(2050, 1, 1, tzinfo=dt.UTC)),
        (der.UTC_TIME, b"260230000000Z", None),
        (der.UTC_TIME, b"2602010000Z", None),
        (der.UTC_TIME, b"260201000000+", None),
        (der.UTC_TIME, b"26020100000 Z", None),
        (der.GENERALIZED_TIME, b"20260201000060Z", None),
        (der.GENERALIZED_TIME, b"20260201000000.5Z", None),
        (der.GENERALIZED_TIME, b"00000201000000Z", None),
        (der.OCTET_STRING, b"260201000000Z", None),
    ],
)
def test_times_are_in_utc_to_the_second(
    tag: int, text: bytes, expected: dt.datetime | None
) -> None:
    fields = der.Fields(bytes((tag, len(text))) + text)
    if expected is not None:
        assert der.moment(fields, "it") == expected
        return
    with pytest.raises(der.DerError):
        der.moment(fields, "it")


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 1400), st.binary(max_size=40), st.integers(0, 40))
def test_a_damaged_certificate_is_read_or_refused(at: int, noise: bytes, drop: int) -> None:
    good = MILAN.endorsements.leaf
    damaged = good[:at] + noise + good[at + drop :]
    code = None
    try:
        parse_certificate(damaged, "VCEK")
    except EvidenceError as error:
        code = error.code
    assert code in (None, "certificate_malformed")


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60))
def test_noise_is_no_revocation_list(noise: bytes) -> None:
    ark = parse_certificate(MILAN.endorsements.ark, "ARK")
    with pytest.raises(EvidenceError, match="revocation list"):
        verify_crl(noise, ark, NOW)
