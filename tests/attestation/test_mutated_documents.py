"""Documents changed anywhere, through whatever is packed in them: a verdict comes out, always.

The ways to change them are those of `scripts/fuzz documents`, which tries a million.
"""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from agent.attestation.port import Verdict
from scripts.fuzzing.documents import NASTY, Source, mutated, run, sources

RUNS = 700


def test_a_changed_document_is_refused_or_accepted_and_nothing_else() -> None:
    found = run(RUNS, seed=7)
    assert found.total() == RUNS
    # Changes reach every reader: not all of them end at the first.
    assert len(found) >= 20
    assert found["accepted"] < RUNS / 4


def test_the_same_seed_makes_the_same_documents() -> None:
    source = sources()[0]
    made = [mutated(source, random.Random(3)) for _ in range(2)]
    assert made[0] == made[1]


def test_a_document_that_is_let_through_is_not_lost_sight_of(monkeypatch: Any) -> None:
    """A verifier that raises is found out."""

    def judge(body: bytes) -> Verdict:
        raise ZeroDivisionError

    broken = (Source(sources()[0].body, judge),)
    monkeypatch.setattr("scripts.fuzzing.documents.Path.write_bytes", lambda path, data: 0)
    monkeypatch.setattr("scripts.fuzzing.documents.sources", lambda: broken)
    with pytest.raises(ZeroDivisionError):
        run(1, seed=1)


@pytest.mark.parametrize("index", range(4))
def test_the_good_documents_are_good(index: int) -> None:
    source = sources()[index]
    assert source.judge(source.body).attested


def test_nothing_nasty_is_a_good_document() -> None:
    for value in NASTY:
        for source in sources():
            assert not source.judge(json.dumps(value).encode()).attested
