"""Debug releases give no evidence: whoever has their console has the guest.

Their measurement is that of a guest with an open shell, so that a verdict on it would promise what
is not so. Where evidence is demanded they are refused at admission; one that runs all the same
(the demand is newer than it) is refused here.
"""

from __future__ import annotations

from agent.attestation.port import Attestation, Check, Evidence, NothingClaimedError, Verdict
from agent.model.enclave import Enclave, Endpoint
from agent.model.identity import KnownMachine
from agent.model.ids import DeploymentName, EnclaveId
from agent.model.release import Release

NO_EVIDENCE = "a debug release (tinfoil-debug=on) gives no evidence: its console is open"


class NoDebugEvidence:
    """Passes every other release on. `demanded`: what gives no evidence may not be Ready."""

    def __init__(self, others: Attestation, *, demanded: bool) -> None:
        self._others = others
        self._demanded = demanded

    async def verify(
        self, enclave: Enclave, release: Release, endpoint: Endpoint, spki_sha256: str
    ) -> Verdict:
        """Of a debug release nothing is claimed, or it is refused."""
        if not release.debug:
            return await self._others.verify(enclave, release, endpoint, spki_sha256)
        check = Check(code="debug_release", passed=False, detail=NO_EVIDENCE)
        return Verdict(attested=False if self._demanded else None, checks=(check,))

    async def evidence(
        self,
        enclave: Enclave,
        release: Release,
        endpoint: Endpoint,
        spki_sha256: str,
        nonce: bytes | None,
    ) -> Evidence:
        """Of a debug release there is none."""
        if release.debug:
            raise NothingClaimedError(NO_EVIDENCE)
        return await self._others.evidence(enclave, release, endpoint, spki_sha256, nonce)

    async def chip_to_accept(self, name: DeploymentName) -> KnownMachine:
        """As the others say."""
        return await self._others.chip_to_accept(name)

    def compare_anew(self) -> None:
        """As the others do."""
        self._others.compare_anew()

    def forget(self, enclave_id: EnclaveId) -> None:
        """Keep nothing of an enclave that is gone."""
        self._others.forget(enclave_id)
