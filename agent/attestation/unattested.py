"""`tee: none`: a plain VM, of which nothing is claimed."""

from __future__ import annotations

from agent.attestation.port import Evidence, NothingClaimedError, Verdict
from agent.model.enclave import Enclave, Endpoint
from agent.model.identity import KnownMachine
from agent.model.ids import DeploymentName, EnclaveId
from agent.model.release import Release


class Unattested:
    """Claims nothing: `attested` is null in every answer. Needs `allow_unattested: true`."""

    async def verify(
        self, enclave: Enclave, release: Release, endpoint: Endpoint, spki_sha256: str
    ) -> Verdict:
        """Claim nothing."""
        del enclave, release, endpoint, spki_sha256
        return Verdict(attested=None)

    async def evidence(
        self,
        enclave: Enclave,
        release: Release,
        endpoint: Endpoint,
        spki_sha256: str,
        nonce: bytes | None,
    ) -> Evidence:
        """There is none."""
        del enclave, release, endpoint, spki_sha256, nonce
        raise NothingClaimedError("There is no evidence to attest with on this host (tee: none).")

    async def chip_to_accept(self, name: DeploymentName) -> KnownMachine:
        """There is none."""
        del name
        raise NothingClaimedError("There is no evidence to attest with on this host (tee: none).")

    def compare_anew(self) -> None:
        """Nothing was learned."""

    def forget(self, enclave_id: EnclaveId) -> None:
        """Nothing was kept."""
        del enclave_id
