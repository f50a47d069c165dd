"""What a person should know of a deployment beyond its status, and what mends it. Pure."""

from __future__ import annotations

from agent.enclaves.port import VmPhase
from agent.model.enclave import Enclave
from agent.model.reasons import Strategy
from agent.model.revision import Wish
from agent.updates.planner.alarm import Alarm
from agent.updates.planner.attestation import loss
from agent.updates.planner.certificates import WARN_FROM, counted, left, recent
from agent.updates.planner.health_history import record_of
from agent.updates.planner.origin_alarms import misgivings
from agent.updates.planner.types import Situation
from agent.updates.planner.upkeep import active_enclave


def alarms(s: Situation, not_taken: str | None = None) -> dict[str, Alarm]:
    """All that hold now, by a key of their own.

    `not_taken`: why the data plane did not take the route that it was told last.
    """
    stuck = {f"stuck:{row.id}": _stuck(row) for row in s.enclaves.values() if _is_stuck(s, row)}
    single = {
        "outage": _outage(s),
        "attestation": _distrust(s),
        "policy": _stricter(s),
        "origin": misgivings(s),
        "secrets": _secrets(s),
        "route": _not_routed(s, not_taken),
    }
    few = {f"certificate:{domain}": _few(s, domain) for domain in s.certificate_boots}
    single |= few
    return stuck | {key: alarm for key, alarm in single.items() if alarm is not None}


def _few(s: Situation, domain: str) -> Alarm | None:
    """A name for which issuers will soon give no certificate any more."""
    boots = s.certificate_boots[domain]
    if recent(boots, s.now) < WARN_FROM:
        return None
    name, remaining = s.deployment.name, left(boots, s.now)
    then = f"after {remaining} more" if remaining else "now"
    return Alarm(
        code="certificate_boots",
        severity="warning",
        detail=f"{name}: {counted(boots, domain, s.now)}: issuers give few a week for one name",
        mend=f"boot it less often; {then} it is not launched again by itself when it ends, but "
        f"`enclave-agent start {name}` still does",
    )


def _is_stuck(s: Situation, row: Enclave) -> bool:
    return s.vm(row.id).phase is VmPhase.STUCK


def _stuck(row: Enclave) -> Alarm:
    """A QEMU that the kernel keeps; it is never doubled."""
    kept = f"; {', '.join(row.gpus)} in quarantine" if row.gpus else ""
    return Alarm(
        code="enclave_stuck",
        severity="error",
        detail=f"{row.deployment}: QEMU of enclave {row.id} was killed and does not end{kept}",
        mend="look for a device or file system that hangs; if it stays, reboot the host",
    )


def _stricter(s: Situation) -> Alarm | None:
    """It was admitted by defaults of before, and by today's it would not be."""
    row = active_enclave(s)
    judged = s.verdicts.get(row.id) if row is not None else None
    if row is None or judged is None or not judged.verdict.stricter:
        return None
    name, failed = s.deployment.name, judged.verdict.stricter
    told = "; ".join(f"{check.code}: {check.detail}" for check in failed)
    return Alarm(
        code="policy_stricter",
        severity="warning",
        detail=f"{name} keeps its traffic, and nothing new would be admitted so: {told}",
        mend="bring the host's firmware up to date, or say in attestation.snp what is good "
        f"enough (`enclave-agent attest {name}` tells the checks); until then no update of {name} "
        "becomes ready",
    )


def _distrust(s: Situation) -> Alarm | None:
    row = active_enclave(s)
    lost = loss(s, row) if row is not None else None
    if row is None or lost is None:
        return None
    name = s.deployment.name
    return Alarm(
        code=lost.code,
        severity="error",
        detail=f"{name}: the evidence of enclave {row.id} is good no more: {lost.detail}",
        mend=f"see `enclave-agent attest {name}`; if it stays, update or roll back {name}",
    )


def _secrets(s: Situation) -> Alarm | None:
    row = active_enclave(s)
    if row is None or s.deployment.wish is not Wish.RUN or s.is_up(row):
        return None
    lacks, name = s.lacks(row), s.deployment.name
    if not lacks:
        return None
    return Alarm(
        code="secrets_missing",
        severity="error",
        detail=f"{name} waits for values of {', '.join(lacks)}, which are not on this host",
        mend=f"`enclave-agent secrets set {name} {lacks[0]}=@FILE`, for each of them: what its "
        "enclave had, or another value, which makes a new revision",
    )


def _not_routed(s: Situation, why: str | None) -> Alarm | None:
    """What was decided about its traffic is not in force."""
    if why is None or s.route_applied:
        return None
    return Alarm(
        code="traffic_unavailable",
        severity="error",
        detail=f"{s.deployment.name}: its traffic is not sent where it should be: {why}",
        mend="it is tried again without your doing, once what the detail says is mended",
    )


def _outage(s: Situation) -> Alarm | None:
    """Nothing serves although it should, and no stop_then_start means it to be so."""
    deployment, update = s.deployment, s.update
    if deployment.wish is not Wish.RUN or deployment.route.enclave is not None:
        return None
    row = active_enclave(s)
    meant = update is not None and update.strategy is not Strategy.BLUE_GREEN
    if meant or (row is None and deployment.fault is None):
        return None
    name = deployment.name
    if deployment.fault is not None:
        why = f"it failed ({deployment.fault.code})"
        mend = f"see `enclave-agent status {name}`; then redeploy it, roll back, or start it again"
    else:
        told = f": {deployment.degraded.detail}" if deployment.degraded else ""
        ended = "was ended because it stayed unhealthy" if _was_ended(s) else "ended by itself"
        why = f"its active enclave {ended}{told}"
        if row is not None and s.is_up(row):
            again = "it was launched again, and serves once it is healthy"
        else:
            again = "it is launched again without your doing, once its secrets are here"
        mend = f"{again}; its last words: `enclave-agent logs {name}`"
    return Alarm(
        code="not_serving",
        severity="error",
        detail=f"{name} refuses connections: {why}",
        mend=mend,
    )


def _was_ended(s: Situation) -> bool:
    """Whether its newest launch comes of its health, and not of its own end."""
    row = active_enclave(s)
    ended = record_of(s, row).relaunched_at if row is not None else ()
    by_itself = s.deployment.relaunches
    return bool(ended) and (not by_itself or ended[-1].reached(by_itself[-1]))
