"""The seam through which every test of a refusal reaches the verifier."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from agent.attestation.port import Verdict
from tests.fakes.attested_guest import Guest

Verify = Callable[[Guest, bytes], Verdict]


@pytest.fixture
def verify() -> Verify:
    return Guest.judged
