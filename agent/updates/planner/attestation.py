"""How far an enclave's evidence is to be believed at a moment. Pure.

Evidence is judged before Ready, again every `reverify_s`, at once when the host's firmware is
another, and anew for another launch or key. It is lost when it is refused, or when the guest has
given none for three times as long: what was proven is true of the moment in which it was proven,
and a new key that proves nothing is no better than an old proof.
"""

from __future__ import annotations

from agent.attestation.port import Verdict
from agent.model.clock import Instant
from agent.model.enclave import Enclave
from agent.model.revision import Fault
from agent.updates.planner.types import Action, ActionKind, Judged, Plan, Situation, act, rest

LOST = "attestation_lost"
REFUSED = "attestation_refused"
_OLD = 3  # times `reverify_s`


def admitted(s: Situation, row: Enclave) -> bool:
    """Whether there is evidence that lets it take traffic now."""
    judged = s.verdicts.get(row.id)
    return judged is not None and judged.verdict.admits and loss(s, row) is None


def held_since(known: Judged | None, key: str) -> Instant | None:
    """Since when evidence over this key was good, as judged before; None if it was not."""
    if known is None or known.key != key or not known.verdict.admits:
        return None
    return known.since or known.at


def loss(s: Situation, row: Enclave) -> Fault | None:
    """What is wrong with evidence that was judged, if it can be believed no more."""
    judged, every_s = s.verdicts.get(row.id), s.policy.reverify_s
    if judged is None or _nothing_claimed(judged.verdict):
        return None
    if judged.verdict.attested is False:
        return Fault(code=LOST, detail=refusals(judged.verdict))
    if every_s is not None and s.now.reached(judged.at.plus(_OLD * every_s)):
        detail = f"no evidence for {_OLD * every_s:g} s: it could not be judged"
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
    again, changed = judged.at.plus(every_s), s.firmware_changed_at
    if s.now.reached(again) or (changed is not None and not judged.at.reached(changed)):
        return verification(s, row)
    return rest(again)


def _nothing_claimed(verdict: Verdict) -> bool:
    """Of a plain VM; evidence that has yet to come claims nothing only for a while."""
    return verdict.attested is None and not verdict.retry
