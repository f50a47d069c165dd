"""Rows come back equal, whatever is in them."""

from __future__ import annotations

import datetime as dt
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.model.clock import Instant
from agent.model.enclave import Enclave
from agent.model.event import Event
from agent.model.gpu import KnownGpu
from agent.model.identity import KnownDevices, KnownLaunch, KnownMachine, RefusedChip
from agent.model.lease import Lease
from agent.model.preparation import GpuCondition
from agent.model.revision import Deployment, Revision
from agent.model.update import Update
from agent.store.port import KeptAnswer
from agent.store.rows import decode, encode

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
finite = st.floats(allow_nan=False, allow_infinity=False)
walls = st.datetimes(timezones=st.just(dt.UTC))
instants = st.builds(Instant, boot_id=text, boottime_s=finite, wall=walls)

SIMPLE: dict[Any, st.SearchStrategy[Any]] = {
    str: text,
    float: finite,
    int: st.integers(-(2**63), 2**63 - 1),
    Instant: instants,
}


def rows(kind: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    """Every field of a struct from its annotation, defaults not excepted."""
    fields = msgspec.structs.fields(kind)
    return st.builds(kind, **{field.name: values(field.type) for field in fields})


def values(annotation: Any) -> st.SearchStrategy[Any]:
    kind = getattr(annotation, "__supertype__", annotation)
    if kind in SIMPLE:
        return SIMPLE[kind]
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return rows(kind)
    members = getattr(annotation, "__args__", ())
    if getattr(annotation, "__origin__", None) is tuple:
        return st.lists(values(members[0]), max_size=3).map(tuple)
    if getattr(annotation, "__origin__", None) is dict:
        return st.dictionaries(values(members[0]), values(members[1]), max_size=3)
    if members:
        return st.one_of(*[values(member) for member in members])
    return st.from_type(annotation)


@pytest.mark.parametrize(
    "kind",
    [
        *(Deployment, Revision, Update, Enclave, Lease, GpuCondition, Event, KeptAnswer, KnownGpu),
        *(KnownMachine, KnownLaunch, KnownDevices, RefusedChip),
    ],
)
def test_a_row_comes_back_equal(kind: type[msgspec.Struct]):
    @settings(max_examples=50)
    @given(rows(kind))
    def check(row: msgspec.Struct) -> None:
        assert decode(encode(row), kind) == row

    check()
