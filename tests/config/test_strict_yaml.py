"""Strict YAML: plain values come out as written, everything clever is refused with its place."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.strict_yaml import StrictYamlError, load_strict_yaml

# What YAML allows unescaped in a double-quoted scalar; line separators would be folded.
printable = st.characters(
    exclude_categories=["Cc", "Cs", "Cn", "Zl", "Zp"], exclude_characters="\ufeff"
)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(printable, max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=8),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(plain)
def test_json_comes_back_as_it_was_written(value: object):
    assert load_strict_yaml(json.dumps(value, ensure_ascii=False).encode(), max_depth=100) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("# only a comment\n", None),
        ("a: 1\nb: [yes, 'yes', 0x10, 1.5, ~]\n", {"a": 1, "b": [True, "yes", 16, 1.5, None]}),
        ("day: 2024-01-02\n", {"day": "2024-01-02"}),
        ("bad_day: 2024-99-99\n", {"bad_day": "2024-99-99"}),
        ("text: |\n  two\n  lines\n", {"text": "two\nlines\n"}),
        ("\ufeffa: é\n", {"a": "é"}),
        ("=: 1\n", {"=": 1}),
        ("--- \na: 1\n...\n", {"a": 1}),
        ("a: &kept 1\n", {"a": 1}),
        ("a: !!str 1\n", {"a": "1"}),
        ("8080: x\n", {8080: "x"}),
        ("at: 22:22\nand: 1:30.5\n", {"at": "22:22", "and": "1:30.5"}),
    ],
)
def test_what_is_plain_is_read(text: str, value: object):
    assert load_strict_yaml(text.encode()) == value


@pytest.mark.parametrize(
    ("text", "place", "reason"),
    [
        ("a: 1\nb: 2\na: 3\n", (3, 1), "is there twice"),
        ("x: {b: 1, b: 1}\n", (1, 11), "is there twice"),
        ("1: a\n0x1: b\n", (2, 1), "is there twice"),
        ("a: &x 1\nb: *x\n", (2, 4), "alias"),
        ("a: 1\n<<: {b: 1}\n", (2, 1), "merge key"),
        ("a: 1\n---\nb: 2\n", (2, 1), "second document"),
        ("a: !!python/object/apply:os.system [id]\n", (1, 4), "tag"),
        ("a: !!python/name:os.system ''\n", (1, 4), "tag"),
        ("a: !!binary aGk=\n", (1, 4), "tag"),
        ("a: !!set {b, c}\n", (1, 4), "tag"),
        ("a: !!int fish\n", (1, 4), "not a valid int"),
        ("a: !!bool fish\n", (1, 4), "not a valid bool"),
        ("a: !!int ''\n", (1, 4), "not a valid int"),
        ("a: " + "9" * 5000 + "\n", (1, 4), "not a valid int"),
        ("a: 18446744073709551616\n", (1, 4), "more than 64 bits"),
        ("0x" + "f" * 9000 + ": 1\n", (1, 1), "more than 64 bits"),
        ("? [a, b]\n: 1\n", (1, 3), "key must be a plain value"),
        ("? {a: b}\n: 1\n", (1, 3), "key must be a plain value"),
        ("a: [1,\n", (2, 1), "did not find expected"),
        ("a:\n\t- b\n", (2, 1), "cannot start any token"),
        ("a: @\n", (1, 4), "cannot start any token"),
    ],
)
def test_what_is_clever_or_broken_is_refused_with_its_place(
    text: str, place: tuple[int, int], reason: str
):
    with pytest.raises(StrictYamlError) as caught:
        load_strict_yaml(text.encode())
    assert reason in caught.value.reason
    assert (caught.value.line, caught.value.column) == place
    assert str(caught.value) == f"line {place[0]}, column {place[1]}: {caught.value.reason}"


def test_bytes_that_are_not_utf8_are_refused_with_their_place():
    with pytest.raises(StrictYamlError, match="not UTF-8") as caught:
        load_strict_yaml(b"a: 1\nb: \xff\n")
    assert (caught.value.line, caught.value.column) == (2, 4)


@pytest.mark.parametrize("text", ["a: \x00\n", "a: \x07\n"])
def test_control_characters_are_refused(text: str):
    with pytest.raises(StrictYamlError):
        load_strict_yaml(text.encode())


def test_more_bytes_than_allowed_are_refused_unread():
    with pytest.raises(StrictYamlError, match="longer than 1048576 bytes"):
        load_strict_yaml(b"[" * (10 << 20))


@pytest.mark.parametrize("unit", ["[", "{a: ", "- ", "? "])
def test_deep_nesting_is_refused_wherever_it_begins(unit: str):
    with pytest.raises(
        StrictYamlError, match=r"nested deeper than 32 levels|must be a plain|nesting depth"
    ):
        load_strict_yaml((unit * 100_000).encode())


def test_nesting_up_to_the_limit_is_read():
    assert load_strict_yaml(b"[" * 32 + b"]" * 32) is not None
    with pytest.raises(StrictYamlError, match="nested deeper"):
        load_strict_yaml(b"[" * 33 + b"]" * 33)


def test_a_billion_laughs_end_at_the_first_alias():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    with pytest.raises(StrictYamlError, match="alias") as caught:
        load_strict_yaml("\n".join(lines).encode())
    assert caught.value.line == 2


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_our_error(data: bytes):
    with contextlib.suppress(StrictYamlError):
        load_strict_yaml(data)


@given(st.text(st.sampled_from("-?:,[]{}#&*!|>'\"%@` \n<=0aenx_.+~"), max_size=40))
def test_no_punctuation_raises_anything_but_our_error(text: str):
    with contextlib.suppress(StrictYamlError):
        load_strict_yaml(text.encode())


def test_a_value_is_not_quoted_in_the_error():
    with pytest.raises(StrictYamlError) as caught:
        load_strict_yaml(b'password: "hunter2\n')
    assert "hunter2" not in str(caught.value)
