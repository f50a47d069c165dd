"""The console of an enclave that is gone, as it is listed."""

from __future__ import annotations

import msgspec

from agent.model.ids import DeploymentName, EnclaveId


class EndedConsole(msgspec.Struct, frozen=True, kw_only=True):
    """Whose it was, when its guest last printed (seconds since 1970), how much of it is kept."""

    enclave: EnclaveId
    deployment: DeploymentName
    slot: str
    revision: int
    tag: str
    ended_at: float
    bytes: int
