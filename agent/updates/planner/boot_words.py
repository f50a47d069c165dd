"""What to say of a boot that takes its time, beyond the stages that the guest serves. Pure."""

from __future__ import annotations

from agent.model.clock import Instant
from agent.model.enclave import Enclave
from agent.model.revision import Fault, Revision
from agent.probes.port import HealthView
from agent.probes.stages import CERTIFICATE
from agent.updates.planner.types import Situation

_AT_ONCE_S = 60.0  # a certificate that is given comes within this
_RETRIES_S = {"cert-proxy": 300, "acme": 1080}  # the public guest's, by its tls-mode
_WORDS = {"cert-proxy": "the certificate proxy", "acme": "the issuer (ACME)"}


def boot_note(s: Situation, row: Enclave) -> str | None:
    """Why it seems to stand still, where that is known: its stages do not tell of retries."""
    health, revision = s.health_of(row.id), s.revisions.get(row.revision)
    if health is None or revision is None or health.stage != CERTIFICATE:
        return None
    return _waits_for_certificate(health, revision, s.now)


def note_changes_at(s: Situation, row: Enclave) -> Instant | None:
    """When the note will say another thing; None while it has no cause."""
    health, revision = s.health_of(row.id), s.revisions.get(row.revision)
    if health is None or revision is None or health.stage != CERTIFICATE:
        return None
    waited_s = s.now.since(health.stage_since) if health.stage_since else None
    every_s = _RETRIES_S.get(revision.tls_mode)
    if health.stage_since is None or waited_s is None or every_s is None:
        return None
    next_s = (1 + waited_s // every_s) * every_s
    return health.stage_since.plus(_AT_ONCE_S if waited_s < _AT_ONCE_S else next_s)


def boot_timeout(s: Situation, row: Enclave) -> Fault:
    """That the boot was not over in time, with where it stood."""
    health = s.health_of(row.id)
    if health is None or not health.answered:
        return Fault(code="boot_timeout", detail="the guest did not answer in time")
    at = f" (stage {health.stage} is under way)" if health.stage else ""
    note = boot_note(s, row)
    why = f"; {note}" if note else ""
    detail = f"the guest answered, but its boot stages did not complete in time{at}{why}"
    return Fault(code="boot_timeout", detail=detail)


def _waits_for_certificate(health: HealthView, revision: Revision, now: Instant) -> str | None:
    waited_s = now.since(health.stage_since) if health.stage_since else None
    every_s = _RETRIES_S.get(revision.tls_mode)
    if waited_s is None or every_s is None or waited_s < _AT_ONCE_S:
        return None
    whom, tries = _WORDS[revision.tls_mode], 1 + int(waited_s // every_s)
    times = "once" if tries == 1 else f"about {tries} times"
    return (
        f"no certificate yet: the guest asks {whom} again every {every_s // 60} min "
        f"(asked {times} so far)"
    )
