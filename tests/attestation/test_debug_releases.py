"""A debug release is never attested, whatever its guest would say."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from agent.attestation.debug_releases import NO_EVIDENCE, NoDebugEvidence
from agent.attestation.port import NothingClaimedError, Verdict
from agent.model.enclave import Endpoint
from simulator.rows import enclave, release

ENDPOINT = Endpoint(address="10.0.0.2", port=443)


async def attests(*_: Any) -> Verdict:
    return Verdict(attested=True)


OTHERS: Any = SimpleNamespace(verify=attests, evidence=attests, forget=lambda _: None)


@pytest.mark.parametrize(("demanded", "attested"), [(True, False), (False, None)])
async def test_nothing_is_claimed_of_it_and_where_evidence_is_demanded_it_is_refused(
    demanded: bool, attested: bool | None
) -> None:
    gate = NoDebugEvidence(OTHERS, demanded=demanded)
    verdict = await gate.verify(enclave(), release(debug=True), ENDPOINT, "key")
    assert verdict.attested is attested
    assert verdict.admits is not demanded
    assert [check.detail for check in verdict.checks] == [NO_EVIDENCE]


@pytest.mark.parametrize("nonce", [None, bytes(32)])
async def test_there_is_no_evidence_to_be_asked_for(nonce: bytes | None) -> None:
    gate = NoDebugEvidence(OTHERS, demanded=False)
    with pytest.raises(NothingClaimedError, match="debug release"):
        await gate.evidence(enclave(), release(debug=True), ENDPOINT, "key", nonce)


async def test_every_other_release_is_judged_as_ever() -> None:
    gate = NoDebugEvidence(OTHERS, demanded=True)
    verdict = await gate.verify(enclave(), release(), ENDPOINT, "key")
    assert verdict.attested is True
