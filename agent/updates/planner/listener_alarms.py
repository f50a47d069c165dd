"""What a person should know of the listeners of a deployment that is to run. Pure."""

from __future__ import annotations

from agent.capacity.listen_rules import ListenRules
from agent.model.resources import Listen
from agent.model.revision import Deployment, Revision, Wish
from agent.updates.planner.alarms import Alarm


def listener_alarms(
    deployment: Deployment, revision: Revision, rules: ListenRules
) -> dict[str, Alarm]:
    """All that hold now, by listener. `revision` is the one whose listeners are in force."""
    if deployment.wish is not Wish.RUN:
        return {}
    listens = [one.listen for one in revision.listeners]
    found = {str(one): _amiss(deployment, one, rules) for one in listens}
    return {key: alarm for key, alarm in found.items() if alarm is not None}


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
