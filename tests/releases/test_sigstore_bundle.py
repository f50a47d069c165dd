"""A bundle holds as a whole or is refused, whatever stands in it; so does the root beside it."""

from __future__ import annotations

import base64
import copy
import datetime as dt
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.releases.sigstore_bundle import verify_bundle
from agent.releases.sigstore_json import BundleError
from tests.fakes.sigstore import NOW, Signature, trusted_root

Path = tuple[str | int, ...]
GOOD = Signature()
ODD: list[Any] = [
    None, True, 0, -1, 1.5, 10**30, "", "0", "9" * 40, "AAAA", "!", "\ud800", "a" * 70_000,
    [], [[]], {}, {"x": {}},
]  # fmt: skip


def refusal(bundle: Any, root: Any = None) -> str | None:
    """The code of the refusal; None for a bundle that holds, and then over the very payload."""
    given_root = trusted_root() if root is None else root
    try:
        signed = verify_bundle(json.dumps(bundle).encode(), json.dumps(given_root).encode())
    except BundleError as error:
        return error.code
    assert signed.payload == GOOD.payload()
    return None


def places(value: Any, path: Path = ()) -> Iterator[Path]:
    yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*path, key))
    elif isinstance(value, list):
        for at, inner in enumerate(value):
            yield from places(inner, (*path, at))


def put(value: Any, path: Path, odd: Any) -> Any:
    if not path:
        return odd
    changed = copy.deepcopy(value)
    place = changed
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = odd
    return changed


def test_a_good_bundle_says_what_was_signed_when_and_by_which_log() -> None:
    data, root = json.dumps(GOOD.bundle()).encode(), json.dumps(trusted_root()).encode()
    signed = verify_bundle(data, root)
    assert (signed.payload, signed.moments, signed.logged_at) == (GOOD.payload(), (NOW,), NOW)
    assert signed.certificate.not_valid_before_utc == NOW - dt.timedelta(minutes=1)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_value_anywhere_in_a_bundle_is_refused_or_changes_nothing(data: st.DataObject) -> None:
    good = _good()
    path = data.draw(st.sampled_from(list(places(good))))
    refusal(put(good, path, data.draw(st.sampled_from(ODD))))


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_value_anywhere_in_a_root_is_refused_or_changes_nothing(data: st.DataObject) -> None:
    root = trusted_root()
    path = data.draw(st.sampled_from(list(places(root))))
    refusal(_good(), put(root, path, data.draw(st.sampled_from(ODD))))


def test_no_byte_of_a_certificate_can_be_another_one() -> None:
    good = _good()
    place = ("verificationMaterial", "certificate", "rawBytes")
    der = base64.b64decode(good[place[0]][place[1]][place[2]])
    for at in range(len(der)):
        other = der[:at] + bytes((der[at] ^ 1 << at % 8,)) + der[at + 1 :]
        assert refusal(put(good, place, base64.b64encode(other).decode())) is not None


_MADE: list[Any] = []


def _good() -> Any:
    """Made once: its keys cost more than its verification."""
    if not _MADE:
        _MADE.append(GOOD.bundle())
    return _MADE[0]


@pytest.mark.parametrize("raw", [b"", b"{}", b"[]", b"null", b"\xff", b"[" * 100_000])
def test_what_is_no_bundle_is_refused(raw: bytes) -> None:
    with pytest.raises(BundleError) as refused:
        verify_bundle(raw, json.dumps(trusted_root()).encode())
    assert refused.value.code == "bundle_malformed"


@pytest.mark.parametrize("raw", [b"", b"{}", b"[]", b"null", b"\xff", b"[" * 100_000])
def test_what_is_no_root_is_refused_as_such(raw: bytes) -> None:
    with pytest.raises(BundleError) as refused:
        verify_bundle(json.dumps(_good()).encode(), raw)
    assert refused.value.code == "trusted_root"
