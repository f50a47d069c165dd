"""How far an enclave's evidence is to be believed at a moment. Pure.

Evidence is judged before Ready, again every `reverify_s`, at once when the host's firmware is
another, and anew for another launch or key. It is lost when it is refused, or when the guest has
given none for three times as long: what was proven is true of the moment in which it was proven,
and a new key that proves nothing is no better than an old proof.

A key is bound (`Enclave.spki_sha256`, durable) once good evidence binds it, and from then on it is
the only one that the probes let pass. Another one has evidence asked for at once; it is lost when
that does not bind it for longer than a probe may fail. A restart of the guest's server shows a key
of the moment: it makes nothing forgotten that was proven of the bound one.
"""

from __future__ import annotations

from dataclasses import replace

import msgspec

from agent.attestation.port import KEY_CHANGED, Check, Verdict
from agent.model.clock import Instant
from agent.model.enclave import Enclave, Lifecycle
from agent.model.event import EventDraft
from agent.model.ids import EnclaveId
from agent.model.revision import Fault
from agent.updates.planner.types import (
    Action,
    ActionKind,
    Judged,
    Plan,
    Situation,
    Write,
    act,
    rest,
)

LOST = "attestation_lost"
REFUSED = "attestation_refused"
DISPUTED = "evidence_disputed"
_OLD = 3  # times `reverify_s`
_DOUBTED = 2  # times as long as a probe may fail: by then the probes have seen what there is


def admitted(s: Situation, row: Enclave) -> bool:
    """Whether there is evidence that lets it take traffic now."""
    judged = s.verdicts.get(row.id)
    return judged is not None and judged.verdict.admits and loss(s, row) is None


def held_since(known: Judged | None, key: str) -> Instant | None:
    """Since when evidence over this key was good, as judged before; None if it was not."""
    if known is None or known.key != key or not known.verdict.admits:
        return None
    return known.since or known.at


def judged_anew(known: Judged | None, key: str, verdict: Verdict, now: Instant) -> Judged | None:
    """What is known of an enclave after one more verdict; None: what was known stands.

    An answer that is no verdict yet takes nothing from what was proven, of this key or of the one
    that was shown before; it is timed from the first of them.
    """
    if not verdict.retry:
        return Judged(key, verdict, now, held_since(known, key) if verdict.admits else None)
    if known is None or (known.key != key and not known.verdict.admits):
        return Judged(key, verdict, now)
    if known.key == key and known.verdict.retry:
        return Judged(key, verdict, known.at)
    if known.key == key and any(check.code == KEY_CHANGED for check in verdict.checks):
        return replace(known, doubted=known.doubted or now)
    return None


def disputed(known: Judged, by: EnclaveId, now: Instant) -> Judged:
    """What is known of an enclave after another's evidence, which was good, showed that both have
    what can be only one's: nobody can say whose it is.
    """
    detail = f"it has something in common with enclave {by} that can be only one's"
    check = Check(code=DISPUTED, passed=False, detail=detail)
    checks = (*(one for one in known.verdict.checks if one.code != DISPUTED), check)
    verdict = msgspec.structs.replace(known.verdict, attested=False, checks=checks)
    return Judged(known.key, verdict, now)


def bind(s: Situation) -> Plan | None:
    """Record the keys that were bound since they were recorded last; None: there is none."""
    found = [(row, key) for row in s.enclaves.values() if (key := _newly_bound(s, row))]
    if not found:
        return None
    bound = tuple(msgspec.structs.replace(row, spki_sha256=key) for row, key in found)
    events = tuple(_another_bound(row, key) for row, key in found if row.spki_sha256)
    return Plan(write=Write(put_enclaves=bound, events=events))


def _newly_bound(s: Situation, row: Enclave) -> str | None:
    health, judged = s.health_of(row.id), s.verdicts.get(row.id)
    if health is None or row.lifecycle is not Lifecycle.RUNNING:
        return None
    if not s.policy.by_evidence:
        return health.bound_spki_sha256 if row.spki_sha256 is None else None
    if judged is None or judged.verdict.attested is not True:
        return None
    return health.spki_sha256 if health.spki_sha256 != row.spki_sha256 else None


def _another_bound(row: Enclave, key: str) -> EventDraft:
    return EventDraft(
        kind="key",
        deployment=row.deployment,
        enclave=row.id,
        from_=row.spki_sha256,
        to=key,
        reason="its evidence binds another TLS key",
    )


def shows_unbound(s: Situation, row: Enclave) -> bool:
    """Whether another key than the bound one is shown, of which no evidence was judged yet."""
    health, judged = s.health_of(row.id), s.verdicts.get(row.id)
    if health is None or row.spki_sha256 is None or health.spki_sha256 == row.spki_sha256:
        return False
    return health.spki_sha256 is not None and (judged is None or judged.verdict.retry)


def rebinding(s: Situation, row: Enclave) -> Plan:
    """Have evidence judged over a key that is not bound yet, however the enclave is."""
    unbound = s.policy.by_evidence and shows_unbound(s, row)
    return verification(s, row) if unbound else rest()


def loss(s: Situation, row: Enclave) -> Fault | None:
    """What is wrong with evidence that was judged, if it can be believed no more."""
    judged, every_s, now = s.verdicts.get(row.id), s.policy.reverify_s, s.now
    if every_s is not None and shows_unbound(s, row):
        health = s.health_of(row.id)
        if health is not None and health.another_key:
            detail = f"it shows the TLS key sha256:{health.spki_sha256}, which no evidence binds"
            return Fault(code=LOST, detail=detail)
    if judged is None or _nothing_claimed(judged.verdict):
        return None
    if judged.verdict.attested is False:
        return Fault(code=LOST, detail=refusals(judged.verdict))
    if every_s is not None and now.reached(judged.at.plus(_OLD * every_s)):
        detail = f"no evidence for {_OLD * every_s:g} s: it could not be judged"
        return Fault(code=LOST, detail=detail)
    doubt_s = _DOUBTED * s.policy.failing_for_s
    if judged.doubted is not None and now.reached(judged.doubted.plus(doubt_s)):
        detail = f"its evidence has come over another TLS key than its own for {doubt_s:g} s"
        return Fault(code=LOST, detail=detail)
    return None


def refusals(verdict: Verdict) -> str:
    """Every check that did not pass, with its reason."""
    failed = [check for check in verdict.checks if not check.passed]
    return "; ".join(f"{check.code}: {check.detail}" for check in failed)


def verification(s: Situation, row: Enclave) -> Plan:
    """Have the evidence judged over the key that is seen; rest while none is seen."""
    health = s.health_of(row.id)
    if health is None or health.spki_sha256 is None:
        return rest()
    key = f"{row.launch_uuid}/{health.spki_sha256}"
    return act(Action(ActionKind.VERIFY, enclave=row.id, key=key))


def keep_verified(s: Situation, row: Enclave) -> Plan:
    """Have it judged when it was not yet, or when it is time again."""
    judged, every_s = s.verdicts.get(row.id), s.policy.reverify_s
    if judged is None or judged.verdict.retry:
        return verification(s, row)
    if _nothing_claimed(judged.verdict) or every_s is None:
        return rest()
    again, changed = judged.at.plus(every_s), s.judge_again_at
    if s.now.reached(again) or (changed is not None and not judged.at.reached(changed)):
        return verification(s, row)
    if judged.doubted is not None:
        return verification(s, row)
    return rest(again)


def _nothing_claimed(verdict: Verdict) -> bool:
    """Of a plain VM; evidence that has yet to come claims nothing only for a while."""
    return verdict.attested is None and not verdict.retry
