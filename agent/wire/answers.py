"""The envelopes around views, and problem details (RFC 9457)."""

from __future__ import annotations

import datetime as dt
from typing import Any

from msgspec import UNSET, Raw, Struct, UnsetType

from agent.model.event import Event
from agent.wire.views import (
    DeploymentView,
    EnclaveView,
    ReasonView,
    UpdateView,
)


class _Answer(Struct, frozen=True, kw_only=True):
    """Base of the answers."""


class ProblemDetails(_Answer, frozen=True, kw_only=True):
    """Why a request was not done. `code` is stable; `detail` is for the person."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    reasons: list[ReasonView] | UnsetType = UNSET
    retry_after_s: float | UnsetType = UNSET
    field: str | UnsetType = UNSET
    oldest: int | UnsetType = UNSET


class Deployments(_Answer, frozen=True, kw_only=True):
    """Sorted by name."""

    deployments: list[DeploymentView]


class Deployed(_Answer, frozen=True, kw_only=True):
    """A deployment as it is now, with the update that was admitted, and what to know of it."""

    deployment: DeploymentView | None
    update: UpdateView
    warnings: list[str] = []


class DeploymentAnswer(_Answer, frozen=True, kw_only=True):
    """A deployment as it is now; null when nothing of it is left."""

    deployment: DeploymentView | None


class Updates(_Answer, frozen=True, kw_only=True):
    """Newest first."""

    updates: list[UpdateView]


class Enclaves(_Answer, frozen=True, kw_only=True):
    """Sorted by deployment, then slot."""

    enclaves: list[EnclaveView]


class EndedConsoleView(_Answer, frozen=True, kw_only=True):
    """The console of an enclave that is gone. `ended_at`: when its guest last printed.

    Its text is at /v1/enclaves/{enclave}/console.
    """

    enclave: str
    deployment: str
    slot: str
    revision: int
    tag: str
    ended_at: dt.datetime
    bytes: int


class EndedConsoles(_Answer, frozen=True, kw_only=True):
    """The newest first: the last three of a deployment, the last 64 of the host."""

    consoles: list[EndedConsoleView]


class Events(_Answer, frozen=True, kw_only=True):
    """In order. `next` is the `after` of the page that follows."""

    events: list[Event]
    next: int


class StaleSecrets(_Answer, frozen=True, kw_only=True):
    """Names whose current version differs from the one given to the running enclave."""

    stale_secrets: list[str]


class SecretView(_Answer, frozen=True, kw_only=True):
    """How one secret stands. Values and digests are never shown.

    `version`: the one that is recorded; null: none is. `given`: the one that the revision which
    serves was given; null: none was. `here`: whether the recorded value is on this host; null:
    nothing is recorded. `declared`: whether that revision's release names it. `how`: in words.
    """

    name: str
    version: int | None
    given: int | None
    here: bool | None
    declared: bool
    how: str


class Secrets(_Answer, frozen=True, kw_only=True):
    """Sorted by name."""

    secrets: list[SecretView]


class Draining(_Answer, frozen=True, kw_only=True):
    """Whether the host refuses new admissions."""

    draining: bool


class EpochReset(_Answer, frozen=True, kw_only=True):
    """The highest epoch of a coordinator that was seen, and is forgotten now; 0: none was."""

    forgotten: int


class Image(_Answer, frozen=True, kw_only=True):
    """An artifact of releases that is kept, by its content's name.

    `needed`: by an enclave or by a revision that can be rolled back to; it is not removed.
    """

    key: str
    bytes: int
    used_at: dt.datetime
    needed: bool


class Images(_Answer, frozen=True, kw_only=True):
    """The least recently used first."""

    images: list[Image]


class CheckupLine(_Answer, frozen=True, kw_only=True):
    """One finding of the doctor. `state`: ok, warn or error; `mend`: what to do, if anything."""

    what: str
    state: str
    detail: str
    mend: str = ""


class Checkup(_Answer, frozen=True, kw_only=True):
    """What the agent says of its host, by its own rights."""

    lines: list[CheckupLine]


class Lease(_Answer, frozen=True, kw_only=True):
    """A promise of capacity until a time."""

    id: str
    strategy: str
    gpus: list[str]
    memory_mib: int
    vcpus: int
    tee_ids: int
    address: str | None
    expires_at: dt.datetime


class ChipAccepted(_Answer, frozen=True, kw_only=True):
    """The id of the processor that evidence of this machine is to name, and what it was before;
    null: none was known. `source`: what kind of id.
    """

    source: str
    old: str | None
    new: str


class AttestationCheck(_Answer, frozen=True, kw_only=True):
    """One check of a verdict. `checked` is there, and false, where nothing was compared: the
    detail says why.
    """

    code: str
    passed: bool
    detail: str
    checked: bool | UnsetType = UNSET


class CollateralView(_Answer, frozen=True, kw_only=True):
    """What vouched for evidence: `issued` is since when it holds, `until` until when."""

    kind: str
    name: str
    issued: dt.datetime | None
    until: dt.datetime | None


class AttestationVerdict(_Answer, frozen=True, kw_only=True):
    """What the evidence is worth. `stricter`: what today's defaults refuse, where it was admitted
    by those of before.
    """

    accepted: bool
    checks: list[AttestationCheck]
    simulated: bool
    stricter: list[AttestationCheck] | UnsetType = UNSET
    collateral: list[CollateralView] | UnsetType = UNSET


class AttestationAnswer(_Answer, frozen=True, kw_only=True):
    """Untouched evidence (null if the guest gave no JSON), and what it is worth.

    `expected`: what it was held against, in hex. `spki_sha256`: of the TLS key that it binds.
    `edition`: of the defaults that its enclave was admitted by.
    """

    evidence: Raw
    verdict: AttestationVerdict
    expected: dict[str, Any]
    nonce: str
    spki_sha256: str
    observed_at: dt.datetime
    edition: int | UnsetType = UNSET
