"""The gate that evidence must pass before an enclave may be called Ready."""

from __future__ import annotations

import datetime as dt
from typing import Protocol

import msgspec

from agent.attestation.expected import Expected
from agent.attestation.origin import Origin
from agent.errors import AgentError
from agent.model.enclave import Enclave, Endpoint
from agent.model.identity import KnownMachine
from agent.model.ids import DeploymentName, EnclaveId
from agent.model.release import Release

KEY_CHANGED = "tls_key_changed"  # the check of a connection that showed another key
BINDS_KEY = "tls_key"  # the check that the evidence binds the key of its connection


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One check of a verdict. `checked` False: nothing was compared, and the detail says why; that
    passes where nobody asks for it, and is never told as good.
    """

    code: str
    passed: bool
    detail: str
    checked: bool = True


def not_checked(code: str, detail: str, *, passed: bool = True) -> Check:
    """What was not looked at."""
    return Check(code=code, passed=passed, detail=detail, checked=False)


class CollateralUsed(msgspec.Struct, frozen=True, kw_only=True):
    """What vouched for evidence. `name`: whose, with its number where it has one. `issued`: since
    when it holds; `until`: until when.
    """

    kind: str
    name: str
    issued: dt.datetime | None = None
    until: dt.datetime | None = None


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What the evidence is worth. `attested` None: nothing is claimed (tee: none), or known yet.

    `retry`: no verdict yet (the guest is still gathering collateral); ask again. `firmware`: of
    the host's processor, as signed evidence tells it; where it changes all are judged again.
    `stricter`: checks of today's defaults that it would not pass, where it was admitted by those
    of before: nothing new would be admitted so. `origin`: of whom the evidence is, where its
    signatures hold. `collateral`: what vouched for it. `disputed`: enclaves that this one has
    something in common with that can be only one's; they are believed no more than it is.
    """

    attested: bool | None
    retry: bool = False
    checks: tuple[Check, ...] = ()
    simulated: bool = False
    firmware: str | None = None
    stricter: tuple[Check, ...] = ()
    origin: Origin | None = None
    collateral: tuple[CollateralUsed, ...] = ()
    disputed: tuple[EnclaveId, ...] = ()

    @property
    def admits(self) -> bool:
        """Whether an enclave with this verdict may become Ready."""
        return self.attested is not False and not self.retry


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """What a guest answered, byte for byte, and what it is worth.

    `document` is None if none was read. `nonce`: the one that was sent (hex). `edition`: of the
    defaults that its enclave was admitted by (`model.evidence_edition`); None: not known.
    """

    document: bytes | None
    verdict: Verdict
    expected: Expected
    nonce: str
    spki_sha256: str
    observed_at: dt.datetime
    edition: int | None = None


class NothingClaimedError(AgentError):
    """There is no evidence on this host: nothing is claimed of its guests."""

    @property
    def code(self) -> str:
        return "not_on_this_host"


class ChipNotAcceptedError(AgentError):
    """Evidence whose processor cannot be taken for this machine's; the text says why."""

    @property
    def code(self) -> str:
        return "chip_not_accepted"


class NotYetError(AgentError):
    """There is no evidence yet: the guest cannot be reached, or still gathers collateral."""

    @property
    def code(self) -> str:
        return "evidence_not_yet"


class Attestation(Protocol):
    """Verifies an enclave's evidence over the key that its TLS shows."""

    async def verify(
        self, enclave: Enclave, release: Release, endpoint: Endpoint, spki_sha256: str
    ) -> Verdict:
        """Fetch evidence with a fresh nonce; judge it against the release and this very key."""
        ...

    async def evidence(
        self,
        enclave: Enclave,
        release: Release,
        endpoint: Endpoint,
        spki_sha256: str,
        nonce: bytes | None,
    ) -> Evidence:
        """What the guest answers to this nonce, or what it answered last to one of ours.

        Raises NotYetError, NothingClaimedError.
        """
        ...

    async def chip_to_accept(self, name: DeploymentName) -> KnownMachine:
        """What is to be remembered where a person says that the processor is this machine's that
        the newest evidence of this deployment was refused for. Raises ChipNotAcceptedError,
        NothingClaimedError, StoreError.
        """
        ...

    def compare_anew(self) -> None:
        """What was learned of this machine is another thing than before."""
        ...

    def forget(self, enclave_id: EnclaveId) -> None:
        """Keep nothing of an enclave that is gone."""
        ...
