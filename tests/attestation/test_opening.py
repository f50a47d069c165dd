"""The gate of a host: whose roots it believes."""

from __future__ import annotations

import pytest

from agent.attestation.opening import open_verifier
from agent.config import AttestationConfig
from tests.attestation.refusals import GOOD
from tests.attestation.test_verifier import RELEASE, ROW, Clock, Served, failed


@pytest.mark.parametrize(("root", "codes"), [(None, ["root_unknown"]), (GOOD.amd, [])])
async def test_a_simulated_processor_is_believed_only_where_it_was_named(root, codes) -> None:
    named = root.root_spki_sha256 if root else None
    gate = open_verifier(AttestationConfig(), Clock(), simulated_root=named)
    guest = Served()
    try:
        endpoint = await guest.start()
        verdict = await gate.verify(ROW, RELEASE, endpoint, guest.identity.spki_sha256)
    finally:
        await guest.stop()
    assert failed(verdict) == codes
    assert verdict.simulated is bool(root)
