"""Any bytes are read or refused, by every parser: noise, damaged good bytes, the kept corpus.

The ways in are those that `scripts/fuzz` feeds; here hypothesis feeds them.
"""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.fuzzing.corpus import RAISED, REACHED, addressed, addressee, reached
from scripts.fuzzing.entries import ENTRIES


@cache
def seeds(name: str) -> list[bytes]:
    return ENTRIES[name].seeds()


@st.composite
def damaged(draw: st.DrawFn, name: str) -> bytes:
    """Good bytes with some of them gone, others put in, twice."""
    data = draw(st.sampled_from(seeds(name)))
    for _ in range(draw(st.integers(1, 2))):
        at = draw(st.integers(0, len(data)))
        gone = draw(st.sampled_from((0, 1, 2, 4, 48, len(data))))
        data = data[:at] + draw(st.binary(max_size=8)) + data[at + gone :]
    return data


@pytest.mark.parametrize("name", ENTRIES)
def test_good_bytes_are_read(name: str) -> None:
    for seed in seeds(name):
        ENTRIES[name].parse(seed)


@pytest.mark.parametrize("name", ENTRIES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_bytes_are_read_or_refused(name: str, data: st.DataObject) -> None:
    ENTRIES[name].holds(data.draw(damaged(name)))


@pytest.mark.parametrize("name", ENTRIES)
@settings(max_examples=30, deadline=None)
@given(noise=st.binary(max_size=300))
def test_noise_is_read_or_refused(name: str, noise: bytes) -> None:
    ENTRIES[name].holds(noise)


@pytest.mark.parametrize("name", ENTRIES)
def test_good_bytes_cut_short_are_read_or_refused(name: str) -> None:
    for seed in seeds(name):
        for size in range(0, len(seed), max(1, len(seed) // 40)):
            ENTRIES[name].holds(seed[:size])


def test_what_once_was_neither_read_nor_refused_is_now() -> None:
    for kept in RAISED.glob("*/*"):
        ENTRIES[kept.parent.name].holds(kept.read_bytes())


@pytest.mark.parametrize("name", ENTRIES)
def test_what_reached_something_new_is_read_or_refused(name: str) -> None:
    for data in reached(name):
        ENTRIES[name].holds(data)


def test_what_is_kept_for_all_of_them_together_comes_to_whom_it_is_for() -> None:
    for name in ENTRIES:
        assert addressee(addressed(name, b"x")) == (name, b"x")


def test_the_corpus_is_of_ways_in_that_there_are() -> None:
    assert {path.name for path in RAISED.iterdir() if path.is_dir()} <= set(ENTRIES)
    assert {path.stem for path in REACHED.iterdir()} <= set(ENTRIES)
