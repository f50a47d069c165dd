"""Evidence that must be refused is refused, each for its own reason and for that alone."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.attestation.refusals import GOOD, REFUSALS, V2_REFUSALS, refused_for
from tests.fakes.attested_guest import Guest, accept_everything


@pytest.mark.parametrize(("code", "guest"), REFUSALS.values(), ids=REFUSALS.keys())
def test_it_is_refused_for_that_reason_and_no_other(code: str, guest: Guest, verify) -> None:
    verdict = verify(guest, guest.v3())
    assert refused_for(verdict, code), [c for c in verdict.checks if not c.passed]
    failed = [check for check in verdict.checks if not check.passed]
    assert {check.code for check in failed} == {code}
    assert all(check.detail for check in failed)


@pytest.mark.parametrize(("code", "guest"), V2_REFUSALS.values(), ids=V2_REFUSALS.keys())
def test_a_document_of_version_2_is_refused(code: str, guest: Guest, verify) -> None:
    assert refused_for(verify(guest, guest.v2()), "endorsement_missing")
    verdict = guest.judged(guest.v2(), guest.amd.endorsements)
    assert refused_for(verdict, code)
    assert refused_for(verdict, "evidence_not_fresh")


def test_with_a_verifier_that_accepts_everything_none_of_these_tests_would_pass() -> None:
    """The number of tests that fail when the verifier is replaced by one that accepts all."""
    failing = [
        name
        for name, (code, guest) in REFUSALS.items()
        if not refused_for(accept_everything(guest, b""), code)
    ]
    assert len(failing) == len(REFUSALS) >= 100


def test_in_the_place_of_the_verifier_one_that_accepts_everything_is_found_out() -> None:
    """The tests of this module themselves, run against it: nearly all of them fail."""
    here = Path(__file__)
    command = [sys.executable, "-m", "pytest", "-p", "tests.fakes.accept_everything", "-q"]
    command += ["-p", "no:cacheprovider", "--tb=no", "-k", "refused", str(here)]
    done = subprocess.run(
        command, cwd=here.parents[2], capture_output=True, text=True, timeout=100, check=False
    )
    found = re.search(r"(\d+) failed", done.stdout)
    assert (done.returncode, found is not None) == (1, True), done.stdout[-2000:]
    assert int(found[1]) >= 100


def test_what_differs_from_them_in_nothing_is_accepted(verify) -> None:
    verdict = verify(GOOD, GOOD.v3())
    assert verdict.attested is True
    assert all(check.passed for check in verdict.checks)
