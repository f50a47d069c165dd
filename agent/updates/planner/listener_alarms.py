"""What a person should know of the listeners of a deployment. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from agent.capacity.listen_rules import ListenRules
from agent.model.resources import Listen
from agent.model.revision import Deployment, Revision, Wish
from agent.traffic.port import Unheld
from agent.updates.planner.alarm import Alarm


def listener_alarms(
    deployment: Deployment,
    revision: Revision,
    rules: ListenRules,
    unheld: Mapping[Listen, Unheld],
) -> dict[str, Alarm]:
    """All that hold now, by listener. `revision` is the one whose listeners are in force.

    `unheld`: whose ports could not be kept from other programs.
    """
    if deployment.wish is Wish.DELETE:
        return {}
    found: dict[str, Alarm] = {}
    for listen in (one.listen for one in revision.listeners):
        amiss = _amiss(deployment, listen, rules) if deployment.wish is Wish.RUN else None
        alarm = amiss or _not_held(deployment, listen, unheld.get(listen))
        if alarm is not None:
            found[str(listen)] = alarm
    return found


def _not_held(deployment: Deployment, listen: Listen, unheld: Unheld | None) -> Alarm | None:
    if unheld is None:
        return None
    name = deployment.name
    if unheld.program is None:
        return Alarm(
            code="listener_not_held",
            severity="warning",
            detail=f"{name}: another program could take its listener {listen}, which cannot be "
            f"held: {unheld.why}",
            mend="it is tried again every few seconds; see the log if it stays",
        )
    who = "its clients get the deployment" if deployment.wish is Wish.RUN else "it is left to it"
    return Alarm(
        code="listener_taken",
        severity="error",
        detail=f"{name}: its listener {listen} was taken by {unheld.program}; while both are "
        f"there, {who}",
        mend=f"give that program another port, or {name} another listener",
    )


def _amiss(deployment: Deployment, listen: Listen, rules: ListenRules) -> Alarm | None:
    absence, fault = rules.absence(listen), rules.fault(listen)
    if absence is not None and fault in (None, absence):
        return Alarm(
            code="listener_absent",
            severity="error" if fault else "warning",
            detail=f"{deployment.name}: no client reaches its listener {listen}: {absence}",
            mend=f"give {listen.address} to this host (ip address add), or give the deployment "
            "another listener; once it is here clients are served without your doing",
        )
    if fault is not None:
        return Alarm(
            code="listener_refused",
            severity="error",
            detail=f"{deployment.name}: its listener {listen} would be given to no deployment "
            f"today: {fault}",
            mend="give the deployment another listener: `listen` and `publish` of an update",
        )
    return None
