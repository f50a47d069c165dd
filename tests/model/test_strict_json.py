"""JSON of others: one meaning, or an error; whatever the bytes are, nothing else comes out."""

from __future__ import annotations

import json
from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.strict_json import (
    MAX_DEPTH,
    MAX_DIGITS,
    StrictJsonError,
    decode_strict_json,
    load_strict_json,
)


class Part(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    raw: msgspec.Raw = msgspec.Raw(b"null")


REFUSED = {
    b"": "column 1|Extra data|BOM",
    b"{} {}": "column 1|Extra data|BOM",
    b"\xef\xbb\xbf{}": "column 1|Extra data|BOM",
    b"\xff": "not UTF-8",
    b'"\xed\xa0\x80"': "not UTF-8",
    b'{"a":1,"a":1}': "is there twice in one object",
    b'{"a":{"b":1,"b":2}}': "is there twice in one object",
    b"[NaN]": "NaN is not a number",
    b"-Infinity": "-Infinity is not a number",
    b"1e999": "beyond what a double holds",
    b"-1E400": "beyond what a double holds",
    b"9" * (MAX_DIGITS + 1): "more than 128 digits",
    b"-" + b"9" * 5000: "more than 128 digits",
    b'"\\ud800"': "surrogate",
    b'{"\\udfff":1}': "surrogate",
    b'["\\udc00\\ud800"]': "surrogate",
    b"[" * 100_000: "nested deeper",
    b'{"a":' * 50_000: "nested deeper",
    b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1): "nested deeper",
}


@pytest.mark.parametrize(("data", "why"), REFUSED.items(), ids=range(len(REFUSED)))
def test_what_two_readers_could_read_in_two_ways_is_refused(data: bytes, why: str) -> None:
    for read in (load_strict_json, lambda data: decode_strict_json(data, object)):
        with pytest.raises(StrictJsonError, match=why) as caught:
            read(data)
        str(caught.value).encode()


def test_what_has_one_meaning_is_read() -> None:
    text = b'{"a":[1,-2.5e3,"\\u00e9\\ud83d\\ude00\\u0000",null,true,{}],"b":18446744073709551615}'
    assert load_strict_json(text) == json.loads(text)
    assert load_strict_json(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)


def test_a_type_keeps_the_very_bytes_of_a_part() -> None:
    part = decode_strict_json(b'{"id":"x","raw": {"n" : 1.50} }', Part)
    assert bytes(part.raw).strip() == b'{"n" : 1.50}'


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"{}", "missing required field id"),
        (b'{"id":1}', r"Expected str, got int - at \$.id"),
        (b'{"id":"x","more":1}', "unknown field more"),
        (b'{"id":"x","raw":{"a":1,"a":2}}', "is there twice"),
        (b"[]", "Expected object"),
    ],
)
def test_what_is_of_another_type_is_told_with_its_place(data: bytes, why: str) -> None:
    with pytest.raises(StrictJsonError, match=why):
        decode_strict_json(data, Part)


@given(st.binary(max_size=80) | st.text('[]{}":,\\ud8cf019eE+-.nulrtsfa ', max_size=60))
def test_any_bytes_are_read_or_refused(data: bytes | str) -> None:
    given_bytes = data if isinstance(data, bytes) else data.encode()
    with suppress(StrictJsonError):
        value = load_strict_json(given_bytes)
        assert json.loads(json.dumps(value)) == value
