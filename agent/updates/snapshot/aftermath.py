"""What an update that failed, or was called off, left behind: what serves, and what to type. Pure.

It is told from what is so at this moment, not from how such updates end as a rule.
"""

from __future__ import annotations

import msgspec

from agent.model.enclave import EnclaveState
from agent.model.reasons import ReasonCode
from agent.model.revision import Wish
from agent.model.update import Decided, Update
from agent.updates.planner.what_serves import nothing_serves, serves_on
from agent.updates.snapshot.snapshot import DeploymentFacts, EnclaveFacts

_WELL = (EnclaveState.RUNNING, EnclaveState.DRAINING)


class NextStep(msgspec.Struct, frozen=True, kw_only=True):
    """A command to type, and what it is good for."""

    command: str
    why: str


class Aftermath(msgspec.Struct, frozen=True, kw_only=True):
    """`serves`: a sentence without an end. `next_steps`: the likeliest first."""

    serves: str
    next_steps: tuple[NextStep, ...]


def aftermath(update: Update, facts: DeploymentFacts) -> Aftermath | None:
    """Of the newest update of a deployment, once it is decided that it does not go through."""
    newest = facts.update is not None and facts.update.id == update.id
    if not newest or update.decided not in (Decided.FAIL, Decided.CANCEL):
        return None
    route = facts.row.route.enclave
    serving = next((one for one in facts.enclaves if one.row.id == route), None)
    gone = facts.row.wish is not Wish.RUN
    return Aftermath(
        serves=_nothing(update, facts) if serving is None else _serves(update, facts, serving),
        next_steps=() if gone else tuple(_steps(update, serves=serving is not None)),
    )


def _serves(update: Update, facts: DeploymentFacts, serving: EnclaveFacts) -> str:
    tag = update.from_tag
    if facts.revision is not None and serving.row.revision == facts.revision.number:
        tag = facts.revision.tag
    told = serves_on(tag, update, serving.row.id)
    sick = serving.health is not None and serving.health.healthy is False
    well = serving.state in _WELL and not sick
    return told if well else f"{told}; but it is not well"


def _nothing(update: Update, facts: DeploymentFacts) -> str:
    return nothing_serves(
        update,
        wanted=facts.row.wish is Wish.RUN,
        comes_back=facts.row.restart_old_revision is not None,
    )


def _steps(update: Update, *, serves: bool) -> list[NextStep]:
    name, fault = update.deployment, update.fault
    found = []
    if fault is not None and fault.console_tail:
        logs = f"enclave-agent logs {name} --previous"
        found.append(NextStep(command=logs, why="all that its guest printed"))
    if fault is not None and fault.code == ReasonCode.SECRETS_MISSING:
        secrets = f"enclave-agent secrets set {name} K=@FILE"
        found.append(NextStep(command=secrets, why="what it lacks"))
    if not serves and update.from_tag is not None:
        back = f"enclave-agent relaunch {name} --tag {update.from_tag}"
        found.append(NextStep(command=back, why="the version before it"))
    retry = f"enclave-agent update retry {name}"
    found.append(NextStep(command=retry, why="the same again, once the cause is mended"))
    if not serves and update.from_tag is None:
        other = f"enclave-agent relaunch {name} --tag TAG"
        found.append(NextStep(command=other, why="another release"))
    return found
